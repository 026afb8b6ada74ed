"""How each family is trained, and the protocol that the families share."""
