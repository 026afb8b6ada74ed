"""Strict validation: an object's keys, types and required keys, against the schemas of what it is meant for.

Core kinds have Kubernetes' own schemas. JobSet, TrainJob and TrainingRuntime have those of the models that Kubeflow
publishes, made strict here: from a model comes a JSON schema, in which an unknown key is an error at any depth. With
`CRDS=FOLDER` in the environment they are held against a cluster's own definitions too: YAML files as
`kubectl get crd NAME -o yaml` prints them.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import Document, jobs, named

# Machines with a GPU and without a network have none of them.
jsonschema = pytest.importorskip("jsonschema")
kubeflow = pytest.importorskip("kubeflow_trainer_api.models")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

KUBERNETES = ("1.33", "1.37")
"""The oldest one that docs/cluster.md promises, whose Jobs know all that the manifests use, and the newest."""
MODELS = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): "JobsetV1alpha2JobSet",
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): "TrainerV1alpha1TrainJob",
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): "TrainerV1alpha1TrainingRuntime",
    ("trainer.kubeflow.org/v1alpha1", "ClusterTrainingRuntime"): "TrainerV1alpha1ClusterTrainingRuntime",
}
"""Which model has which kind; all of them are of Kubeflow Trainer's API in the version of `MODELS_VERSION`."""
MODELS_VERSION = f"kubeflow_trainer_api {version('kubeflow_trainer_api')}"

Schema = dict[str, Any]
SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The fast one, where PyYAML has it: definitions are long."""


def problems(of: list[Document]) -> list[str]:
    """Whatever a strict API server would refuse in these objects, and in the jobs that controllers make of them."""
    found = [problem for document in of for problem in _of_object(document)]
    made = [job for job in jobs(of) if job.owner["kind"] != "Job"] if not found else []
    return found or [f"{job.where}, as a job: {problem}" for job in made for problem in _of_core(job.document)]


def _of_object(document: Document) -> Iterator[str]:
    kind = (document.get("apiVersion", ""), document.get("kind", ""))
    found = _of_model(document, MODELS[kind]) if kind in MODELS else _of_core(document)
    if kind in MODELS and os.environ.get("CRDS"):
        found = [*found, *of_definition(document, Path(os.environ["CRDS"]))]
    yield from (f"{named(document)}: {problem}" for problem in found)


# --- Kubernetes' own kinds --------------------------------------------------------------------------------------------


def _of_core(document: Document) -> Iterator[str]:
    yield from _core_problems(json.dumps(document))


@functools.cache  # each look at a schema reads a megabyte, and most objects of a folder are those of another one
def _core_problems(text: str) -> list[str]:
    found = []
    for release in KUBERNETES:
        try:
            kubernetes_validate.validate(json.loads(text), release, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"Kubernetes {release}: {_place(error.path)}: {error.message[:300]}")
        except kubernetes_validate.SchemaNotFoundError as error:
            found.append(f"Kubernetes {release}: {error.message}")
    return found


# --- Kubeflow's models ------------------------------------------------------------------------------------------------


def _of_model(document: Document, model: str) -> Iterator[str]:
    for error in sorted(_model_validator(model).iter_errors(document), key=lambda error: list(map(str, error.path))):
        yield f"{MODELS_VERSION}: {_place(error.path)}: {error.message[:300]}"


@functools.cache
def _model_validator(model: str) -> jsonschema.Draft202012Validator:
    schema = getattr(kubeflow, model).model_json_schema(by_alias=True)
    definitions = {name: _closed(part) for name, part in schema["$defs"].items()}
    whole = {**_closed({key: part for key, part in schema.items() if key != "$defs"}), "$defs": definitions}
    whole["required"] = sorted({*whole.get("required", []), "apiVersion", "kind", "metadata"})
    return jsonschema.Draft202012Validator(whole)


def _closed(part: Schema) -> Schema:
    """A model's schema without room for other keys; the two models that stand for a number or a text are just that."""
    if "one_of_schemas" in part.get("properties", {}):
        return {"type": ["integer", "string"] if "IntOrString" in part.get("title", "") else ["number", "string"]}
    if "properties" not in part:
        return part
    return {
        **part,
        "properties": {k: _present(v) for k, v in part["properties"].items()},
        "additionalProperties": False,
    }


def _present(part: Schema) -> Schema:
    """A key that may be absent is not one that may be null: that is a value which somebody forgot."""
    choices = [choice for choice in part.get("anyOf", []) if choice != {"type": "null"}]
    return choices[0] if len(choices) == 1 else part


# --- a cluster's own definitions --------------------------------------------------------------------------------------


def of_definition(document: Document, folder: Path) -> Iterator[str]:
    """What a cluster's own definition of this kind refuses, its keys made strict; its CEL rules are not evaluated.

    Args:
        document: An object of a kind that is no core one.
        folder: With definitions in files that end with .yaml or .yml.
    """
    group, _, release = document["apiVersion"].partition("/")
    schema = definitions(folder).get((group, release, document["kind"]))
    if schema is None:
        yield f"{folder} has no definition of {document['kind']} in {document['apiVersion']}"
        return
    for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
        yield f"the definition in {folder}: {_place(error.path)}: {error.message[:300]}"


@functools.cache
def definitions(folder: Path) -> dict[tuple[str, str, str], Schema]:
    """The strict schema of every kind that a folder defines, by group, version and kind."""
    found = {}
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        for part in yaml.load_all(
            path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        ):
            for definition in part.get("items", [part]) if part else []:
                for release in definition.get("spec", {}).get("versions", []):
                    key = (definition["spec"]["group"], release["name"], definition["spec"]["names"]["kind"])
                    found[key] = _strict(release["schema"]["openAPIV3Schema"])
    return found


def _strict(node: Any) -> Any:
    """A structural schema of OpenAPI as a JSON schema that knows no other keys."""
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if not key.startswith("x-kubernetes") and key != "nullable"}
    for key in ("properties", "patternProperties"):
        if key in kept:
            kept[key] = {name: _strict(part) for name, part in kept[key].items()}
    for key in ("items", "additionalProperties", "not"):
        if key in kept:
            kept[key] = _strict(kept[key])
    if node.get("x-kubernetes-int-or-string"):
        kept["type"] = ["integer", "string"]
    elif node.get("nullable"):
        kept["type"] = [node["type"], "null"]
    if "properties" in kept and not node.get("x-kubernetes-preserve-unknown-fields"):
        kept.setdefault("additionalProperties", False)
    return kept


def _place(path: Iterable[Any]) -> str:
    return ".".join(map(str, path)) or "the object"
