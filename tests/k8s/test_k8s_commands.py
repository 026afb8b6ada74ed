"""Every command of k8s/ is one that our programs take, and every variable one that somebody reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from changes import GONE, pod_specs, put
from command_lines import Call, calls, commands, started
from manifests import ROOT, environment, folders, mounted, names_told, pods, resolved, together
from policy import at_hand, configurations
from readers import reader

from hires_gan.config import load_configuration
from hires_gan.doctor_asked import split_names
from hires_gan.errors import UsageError

TRAINING = [folder for folder in folders() if folder not in ("volumes", "overlays/prepare", "overlays/mlflow")]


def all_calls(of: list[Any], folder: Path, index: int = 0) -> list[Call]:
    """Whatever our image is asked for in these objects, by the pod of an index."""
    found = []
    for pod in pods(of):
        for number, (_, command, told) in enumerate(commands(pod, of)):
            place = folder / f"{pod.name}-{number}"
            place.mkdir()
            own = {name: str(index) for name in ("JOB_COMPLETION_INDEX", "PET_NODE_RANK") if name in told}
            for words in started(command, {**told, **own}, place):
                found += calls(words, told)
    return found


@pytest.mark.parametrize("folder", [folder for folder in folders() if folder != "volumes"])
def test_its_commands_are_taken(folder, tmp_path):
    found = all_calls(together(folder), tmp_path)
    assert found
    for call in found:
        assert call.name.split()[0] in ("hires-gan", "mlflow", "meeting", "accelerate", "torchrun")


@pytest.mark.parametrize("folder", TRAINING)
@pytest.mark.parametrize("last", [False, True])
def test_the_doctor_comes_first_and_the_launcher_knows_the_place(folder, last, tmp_path):
    """What each pod is told agrees with the job that it belongs to."""
    of = together(folder)
    [pod] = pods(of)
    told = environment(pod, pod.spec["containers"][0], of)
    index = pod.count - 1 if last else 0
    doctor, meeting, launcher, train = all_calls(of, tmp_path, index)
    names = [doctor.name, meeting.name, launcher.name, train.name]
    assert names == ["hires-gan doctor", "meeting", "accelerate", "hires-gan train"]
    place = {"address": told["MASTER_ADDR"], "port": int(told["MASTER_PORT"]), "nodes": pod.count, "index": index}
    assert meeting.options == place
    each = int(told["GPUS"]) or int(told["PROCESSES"])
    assert launcher.options["num_machines"] == pod.count
    assert launcher.options["num_processes"] == pod.count * each
    assert launcher.options["machine_rank"] == index
    assert launcher.options["main_process_ip"] == told["MASTER_ADDR"]
    assert str(launcher.options["main_process_port"]) == told["MASTER_PORT"]
    assert (ROOT / launcher.options["config_file"]).is_file()
    assert str(doctor.options["gpus"]) == told["GPUS"]
    assert doctor.options["config"] == train.options["config"]
    assert doctor.options["overrides"] == train.options["overrides"]
    assert set(split_names(doctor.options["needs"])) == set(filter(None, told["NEEDS"].split(",")))


@pytest.mark.parametrize("folder", TRAINING)
def test_its_configuration_is_valid(folder, tmp_path):
    of = together(folder)
    [pod] = pods(of)
    [configuration] = configurations(pod, pod.spec["containers"][0], of)
    train = all_calls(of, tmp_path)[-1]
    path = at_hand(str(train.options["config"]), mounted(pod, pod.spec["containers"][0], of), tmp_path)
    assert load_configuration(path, train.options["overrides"]) == configuration
    told = environment(pod, pod.spec["containers"][0], of)
    processes = pod.count * (int(told["GPUS"]) or int(told["PROCESSES"]))
    least, most = configuration.backend.allowed
    assert least <= processes <= (most or processes)


# --- commands that are wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["hires-gan", "trains", "a.yaml"], "no command 'trains'"),
        (["hires-gan", "train"], "CONFIG"),
        (["hires-gan", "doctor", "a.yaml", "--gpu", "1"], "--gpu"),
        (["hires-gan", "doctor", "a.yaml", "--gpus", "one"], "--gpus"),
        (["hires-gan", "prepare", "a", "--out", "b"], "--resolution"),
        (["hires-gan", "shards", "mend", "a"], "no command 'mend'"),
        (["mlflow", "server", "--hosts", "0.0.0.0"], "--hosts"),
        (["mlflow", "serve"], "no command 'serve'"),
        (["accelerate", "launch", "--machines", "2", "-m", "hires_gan", "train", "a"], "starts --machines|--machines"),
        (["accelerate", "launch", "train.py"], "starts train.py"),
        (["accelerate", "launch", "-m", "hires_gan", "tain", "a.yaml"], "no command 'tain'"),
        (["torchrun", "--nproc-per-node", "2", "-m", "hires_gan", "train"], "CONFIG"),
        (["sleep", "1"], "sleep 1: none of"),
        (["python", "-m", "hires_gan.training.meeting", "first", "29500", "2"], "zip"),
        (["python", "-m", "hires_gan.training.meetings"], "none of"),
    ],
)
def test_a_wrong_command_is_refused(words, complaint):
    with pytest.raises(ValueError, match=complaint):
        calls(words, {})


def test_a_wrong_value_in_a_variable_is_refused():
    assert calls(["mlflow", "server"], {"MLFLOW_PORT": "5000"})[0].options["port"] == 5000
    with pytest.raises(ValueError, match="5000/tcp"):
        calls(["mlflow", "server"], {"MLFLOW_PORT": "5000/tcp"})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("containers.0.command", ["bash", "launch/pot.sh", "/mnt/config/train.yaml"]),
        ("containers.0.command", ["bash", "launch/pod.sh"]),
        ("containers.0.envFrom", GONE),
    ],
)
def test_a_script_that_fails_is_seen(path, value, tmp_path):
    of = together("base")
    put(next(pod_specs(of)), path, value)
    put(next(pod_specs(of)), "containers.0.args", [])
    with pytest.raises(AssertionError, match="ends with"):
        all_calls(of, tmp_path)


@pytest.mark.parametrize("override", ["tracking.metrics_prot=1", "run.total_kimg=many"])
def test_a_wrong_override_is_seen(override):
    of = together("base")
    put(next(pod_specs(of)), "containers.0.args.+", override)
    [pod] = pods(of)
    with pytest.raises(UsageError, match=override.partition("=")[0]):
        list(configurations(pod, pod.spec["containers"][0], of))


def test_variables_are_resolved_as_the_kubelet_does():
    assert resolved("a$(B)c $(C) $$(B) $B", {"B": "1"}) == "a1c $(C) $(B) $B"


@pytest.mark.parametrize("folder", [folder for folder in folders() if folder != "volumes"])
def test_no_reference_is_left_open(folder):
    of = together(folder)
    for pod in pods(of):
        for container in pod.containers:
            told = environment(pod, container, of)
            secret = names_told(container, of) - set(told)
            words = [*container.get("command", []), *container.get("args", []), *told.values()]
            open_ones = {name for word in words for name in re.findall(r"\$\(([\w.-]+)\)", resolved(word, told))}
            assert open_ones <= secret, f"{pod.where}, {container['name']}"


# --- who reads the environment ----------------------------------------------------------------------------------------


def unread(of: list[Any]) -> list[str]:
    """Variables that nobody reads, neither a program nor the manifest itself."""
    found = []
    for pod in pods(of):
        for container in pod.containers:
            words = [*container.get("command", []), *container.get("args", [])]
            words += [entry.get("value", "") for entry in container.get("env", [])]
            here = {name for word in words for name in re.findall(r"\$\(([\w.-]+)\)", word)}
            for name in sorted(names_told(container, of) - here):
                if reader(name, container["image"]) is None:
                    found.append(f"{pod.where}, {container['name']}: {name}")
    return found


@pytest.mark.parametrize("folder", [folder for folder in folders() if folder != "volumes"])
def test_each_variable_is_read_by_somebody(folder):
    assert unread(together(folder)) == []


@pytest.mark.parametrize(
    "name", ["NCCL_SOCKET_IFNAMES", "GLOO_IFNAME", "MLFLOW_TRACKING_URL", "NODE", "TORCH_NCCL_ASYNC"]
)
def test_a_variable_that_nobody_reads_is_seen(name):
    of = together("base")
    put(next(pod_specs(of)), "containers.0.env.+", {"name": name, "value": "1"})
    assert unread(of) == [f"JobSet hires-gan, replicatedJob node, node: {name}"]


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("NODES", "launch/pod.sh"),
        ("NCCL_CROSS_NIC", "libnccl.so"),
        ("GLOO_SOCKET_IFNAME", "libtorch_cpu.so|launch/"),
        ("HIRES_GAN_WORLD_SIZE", "hires_gan/data/ranks.py"),
        ("MLFLOW_SERVER_ALLOWED_HOSTS", "mlflow/"),
        ("AWS_ACCESS_KEY_ID", "."),
        ("TMPDIR", "everything"),
    ],
)
def test_readers_are_found(name, who):
    assert re.search(who, reader(name, "hires-gan:1") or "nobody")


def test_images_of_others_read_their_own_variables():
    assert reader("POSTGRES_DB", "postgres:17.6")
    assert reader("NODES", "postgres:17.6") is None
    assert reader("POSTGRES_DB", "hires-gan:1") is None
