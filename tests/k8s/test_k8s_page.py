"""What docs/cluster.md tells to apply is there, and a folder of one's own, as it shows one, comes to what it should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import admission
import policy
import pytest
import strict
import truth
import yaml
from manifests import (
    K8S,
    ROOT,
    documents,
    environment,
    folders,
    is_ours,
    jobs,
    kustomizations,
    loose_files,
    pods,
    together,
)
from readers import reader

from hires_gan import __version__

PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
APPLIED = re.findall(r"kubectl (?:apply|delete|diff) [^\n`]*?-[kf] +([^\s`;|)]+)", PAGE)


def shown(folder: str) -> dict[str, str]:
    """Name and text of each file of an own folder, whose block begins with its path."""
    blocks = re.findall(r"```yaml\n# (\S+?)/(\S+\.yaml)[^\n]*\n(.*?)```", PAGE, re.DOTALL)
    return {name: text for where, name, text in blocks if where == folder}


def test_what_the_page_applies_is_there():
    known = {f"k8s/{name}" for name in [*folders(), *loose_files()]}
    assert {name for name in APPLIED if name.startswith("k8s/")} <= known
    assert {name for name in APPLIED if not name.startswith("k8s/")} == {"faces"}


def test_the_page_names_every_overlay():
    assert {folder for folder in folders() if not re.search(rf"\b{folder.split('/')[-1]}\b", PAGE)} == set()


def test_the_versions_of_the_page_are_those_of_the_checks():
    assert f"Kubernetes {strict.KUBERNETES[0]} or newer" in PAGE
    assert f"Trainer {'.'.join(strict.MODELS_VERSION.split()[1].split('.')[:2])}" in " ".join(PAGE.split())


def test_every_file_is_used():
    """A file that no kustomization names would change nothing, unless the page applies it."""
    assert {f"k8s/{name}" for name in loose_files()} <= set(APPLIED)


def test_every_folder_is_used():
    """What is no overlay is applied by itself or part of one; no folder is forgotten."""
    used = {"base", "volumes", *(folder for folder in kustomizations() if folder.startswith("overlays/"))}
    for folder, content in kustomizations().items():
        for part in [*content.get("resources", []), *content.get("transformers", []), *content.get("components", [])]:
            if (K8S / folder / part).is_dir():
                used.add((K8S / folder / part).resolve().relative_to(K8S).as_posix())
    assert set(kustomizations()) == used


# --- secrets ----------------------------------------------------------------------------------------------------------


def secrets_of(name: str) -> set[str]:
    """The keys that the page puts into a Secret."""
    commands = re.findall(rf"kubectl create secret generic {name}\b([^\n]*)", PAGE)
    return set(re.findall(r"--from-literal[= ]['\"]?([A-Za-z_]\w*)=", " ".join(commands)))


def test_the_keys_of_the_secrets_are_read():
    """All those of the Secret `hires-gan` are variables of pods that train; one that nobody reads is misspelt."""
    assert secrets_of("hires-gan")
    assert {name for name in secrets_of("hires-gan") if reader(name, "hires-gan:1") is None} == set()


def test_the_secrets_have_the_keys_that_manifests_name():
    named: dict[str, set[str]] = {}
    for folder in folders():
        for pod in pods(documents(folder)):
            for entry in (entry for container in pod.containers for entry in container.get("env", [])):
                reference = entry.get("valueFrom", {}).get("secretKeyRef")
                if reference:
                    named.setdefault(reference["name"], set()).add(reference["key"])
    assert named
    for name, keys in named.items():
        assert keys <= secrets_of(name)


# --- a folder of one's own --------------------------------------------------------------------------------------------


def own_folder(tmp_path: Path, files: dict[str, str]) -> str:
    """A folder beside a copy of k8s/, as the page tells; its path."""
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "own").mkdir()
    for name, text in files.items():
        (tmp_path / "own" / name).write_text(text, encoding="utf-8")
    return str(tmp_path / "own")


def problems(folder: str) -> list[str]:
    found = [*strict.problems(documents(folder)), *admission.problems(documents(folder))]
    return [*found, *policy.problems(together(folder)), *truth.problems(together(folder))]


def test_the_folder_of_the_page_is_a_training_of_its_own(tmp_path):
    files = shown("faces")
    assert set(files) == {"kustomization.yaml", "train.yaml"}
    own = own_folder(tmp_path, files)
    [name] = re.findall(r"^sed -i '.*' k8s/image/kustomization.yaml$", PAGE, re.MULTILINE)
    subprocess.run(["sh", "-c", name], cwd=tmp_path, check=True, timeout=30)
    assert problems(own) == []
    [(pod, container, told, configuration)] = truth.training(together(own))
    [pushed] = re.findall(r"^docker push (\S+)$", PAGE, re.MULTILINE)
    assert container["image"] == pushed == f"registry.example.com/team/hires-gan:{__version__}"
    assert told["NODES"] == "4"
    assert pod.count == 4
    assert configuration.run.name == yaml.safe_load(files["train.yaml"])["run"]["name"]


@pytest.mark.parametrize("overlay", ["base", "overlays/indexed-job", "overlays/trainjob", "overlays/eight-gpu-nodes"])
def test_a_second_training_beside_the_first_shares_no_name(overlay, tmp_path):
    content = {"resources": [f"../k8s/{overlay}"], "nameSuffix": "-cars"}
    own = own_folder(tmp_path, {"kustomization.yaml": yaml.safe_dump(content)})
    assert problems(own) == []
    assert all(document["metadata"]["name"].endswith("-cars") for document in documents(own))
    assert {job.name for job in jobs(documents(own))}.isdisjoint(job.name for job in jobs(documents(overlay)))
    [pod] = pods(together(own))
    assert "-cars" in environment(pod, pod.spec["containers"][0], together(own))["MASTER_ADDR"]


KINDS = {"jobset": ("JobSet", []), "indexed-job": ("Job", ["../k8s/components/indexed-job"]),
         "trainjob": ("TrainJob", ["../k8s/components/trainjob"])}  # fmt: skip


@pytest.mark.parametrize("suffix", ["", "-cars"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("key", "value"), [("NODES", "1"), ("GPUS", "4"), ("MASTER_PORT", "2"), ("METRICS_PORT", "3")])
def test_one_place_changes_a_value_everywhere(key, value, kind, suffix, tmp_path):
    patch = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hires-gan"}, "data": {key: value}}
    owner, components = KINDS[kind]
    content = {
        "resources": ["../k8s/overlays/eight-gpu-nodes"],
        "components": components,
        "nameSuffix": suffix,
        "patches": [{"patch": yaml.safe_dump(patch)}],
        "transformers": ["../k8s/wiring"],
    }
    own = own_folder(tmp_path, {"kustomization.yaml": yaml.safe_dump(content)})
    # Trainer chooses the port by itself, and no other one is of use there.
    found = problems(own)
    assert len(found) == ((owner, key) == ("TrainJob", "MASTER_PORT"))
    assert all("the port that Trainer takes" in problem for problem in found)
    [(pod, container, told, _)] = truth.training(together(own))
    assert pod.owner["kind"] == owner
    assert is_ours(container)
    assert told[key] == value
    assert (pod.count == 1) == (key == "NODES")
