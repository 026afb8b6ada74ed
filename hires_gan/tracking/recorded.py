"""What a run's folder says of its MLflow run: which it is, and in which store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from hires_gan.tracking.journal import read_json
from hires_gan.tracking.store import is_redacted, redact, sqlite_path


@dataclass(frozen=True)
class Recorded:
    """What the tracker has left in a run's folder.

    Attributes:
        folder: The run's folder.
        run_id: The MLflow run.
        uri: The store as it was, without secrets.
    """

    folder: Path
    run_id: str
    uri: str

    def full_uri(self, given: str | None = None) -> str | None:
        """The store with the secrets that are not recorded, and where it lies now: a SQLite file may have moved along.

        Secrets come from what is given, MLFLOW_TRACKING_URI or the run's configuration, whichever is that store's.

        Args:
            given: The address that the user named.

        Returns:
            None where the secrets are nowhere to be found.
        """
        path = sqlite_path(self.uri)
        if path is not None:
            beside = self.folder.absolute().parent / path.name
            return self.uri if path.exists() or not beside.exists() else f"sqlite:///{beside}"
        if not is_redacted(self.uri):
            return self.uri
        known = filter(None, (given, os.environ.get("MLFLOW_TRACKING_URI"), _configured_uri(self.folder)))
        return next((uri for uri in known if redact(uri) == self.uri), None)


def read_recorded(folder: Path) -> Recorded | None:
    """What `tracking/run.json` in a run's folder says; None if it is absent or damaged."""
    content = read_json(folder / "tracking" / "run.json")
    run_id, uri = content.get("run_id"), content.get("uri")
    return Recorded(folder, run_id, uri) if isinstance(run_id, str) and isinstance(uri, str) else None


def _configured_uri(folder: Path) -> str | None:
    """`tracking.uri` of the configuration that lies in a run's folder."""
    try:
        uri = yaml.safe_load((folder / "config.yaml").read_text())["tracking"]["uri"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    return uri if isinstance(uri, str) else None
