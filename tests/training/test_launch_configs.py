"""The launch configs as `accelerate launch` itself reads them: its file classes, its parser, what it hands to the run.

Without a GPU nothing is started. What is checked is everything before that: the environment that accelerate would
export, and the settings that its plugin then reads there.
"""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import _filter_args, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from torch.distributed.fsdp import CPUOffloadPolicy, StateDictType
from torch.distributed.run import config_from_args, get_args_parser

from triune.configuration import preset
from triune.modeling import TriuneForCausalLM, TriuneForImageClassification, TriuneForMaskedLM
from triune.modeling.transformer import TransformerLayer
from triune.training.run import keep_sums_exact


ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
FILES = pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
PARALLEL = [DistributedType.MULTI_GPU, DistributedType.FSDP]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """What a launcher may find in the environment would win over the files."""
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "FSDP_VERSION"):
        monkeypatch.delenv(name, raising=False)


def path(name):
    return str(ROOT / "recipes" / "accelerate" / f"{name}.yaml")


def launch(*words):
    """The arguments of a launch, with what its config file adds."""
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    return args


def exported(args):
    """The environment of the training processes."""
    if args.multi_gpu or args.use_fsdp:
        return prepare_multi_gpu_env(args)
    return prepare_simple_launcher_cmd_env(args)[1]


def commands(file):
    """The launch commands in the comments of a file."""
    return re.findall(r"^# +accelerate launch (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_there_are_five():
    """The files of the folder against their list."""
    assert [file.stem for file in CONFIGS] == ["cpu", "ddp", "fsdp2", "gpu", "nodes"]


@FILES
def test_accelerate_knows_every_key(file):
    """Keys against the fields of accelerate's config class and, below `fsdp_config`, the launcher's own flags."""
    config = load_config_from_file(str(file))  # refuses unknown keys
    flags = {action.dest for action in launch_command_parser()._actions}
    assert set(config.fsdp_config) <= flags
    assert all(key.startswith("fsdp_") for key in config.fsdp_config)
    keys = [line.split(":")[0].strip() for line in file.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    keys = [key for key in keys if key and not key.startswith("#")]
    assert len(keys) == len(set(keys))  # YAML keeps the last of two


@FILES
def test_every_line_takes_effect(file):
    """Values of the file against the arguments of a launch: accelerate drops those whose flag has a default."""
    args = launch("--config_file", str(file), "train.py")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    lines = content | content.pop("fsdp_config", {})
    for key in {"compute_environment", "distributed_type"} & set(lines):  # decide the launcher, tested below
        del lines[key]
    assert {key: getattr(args, key) for key in lines} == lines


@FILES
def test_commands_in_the_comments(file):
    """Every command is one that accelerate's parser takes, about this file, and trains a recipe."""
    found = commands(file)
    assert found
    for command in found:
        args = launch_command_parser().parse_args(shlex.split(command))
        assert ROOT / args.config_file == file
        assert (args.training_script, Path(*Path(args.training_script_args[0]).parts[:1])) == (
            "scripts/train.py",
            Path("recipes"),
        )


@pytest.mark.parametrize("name, use_cpu, precision", [("cpu", "True", "no"), ("gpu", "False", "bf16")])
def test_one_process(name, use_cpu, precision):
    """cpu and gpu: one process by the simple launcher, device and precision as the files say."""
    args = launch("--config_file", path(name), "train.py")
    assert not args.multi_gpu and not args.use_fsdp and args.num_processes == 1
    environment = exported(args)
    assert environment["ACCELERATE_USE_CPU"] == use_cpu
    assert environment["ACCELERATE_MIXED_PRECISION"] == precision


def test_one_gpu_by_number():
    """`--gpu_ids 3` against the devices that the process is shown."""
    args = launch("--config_file", path("gpu"), "--gpu_ids", "3", "train.py")
    assert exported(args)["CUDA_VISIBLE_DEVICES"] == "3"


@pytest.mark.parametrize("flags, processes", [((), "8"), (("--num_processes", "4"), "4")])
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_one_machine(name, flags, processes):
    """ddp and fsdp2: 8 processes on one machine, or as many as the flag says, on a port that is free."""
    args = launch("--config_file", path(name), *flags, "train.py")
    assert (args.multi_gpu, args.use_fsdp) == (name == "ddp", name == "fsdp2")
    environment = exported(args)
    assert args.nproc_per_node == processes and args.num_machines == 1
    assert int(args.master_port) > 1023
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert ("ACCELERATE_USE_FSDP" in environment) == (name == "fsdp2")


NODES = [
    ("nodes", ["--machine_rank", "1"]),
    (
        "fsdp2",
        ["--num_machines", "2", "--num_processes", "16", "--machine_rank", "1"] + ["--main_process_port", "29500"],
    ),
]


@pytest.mark.parametrize("name, flags", NODES, ids=["ddp", "fsdp2"])
def test_two_machines(name, flags):
    """On the second of two machines, what torchrun makes of it: 8 processes, its number, the first one's address."""
    args = launch("--config_file", path(name), *flags, "--main_process_ip", "10.0.0.7", "train.py")
    exported(args)
    torchrun, _, _ = config_from_args(_filter_args(args, get_args_parser(), ["--training_script", "train.py"]))
    assert (torchrun.min_nodes, torchrun.max_nodes, torchrun.nproc_per_node) == (2, 2, 8)
    assert (torchrun.rdzv_backend, torchrun.rdzv_endpoint) == ("static", "10.0.0.7:29500")
    assert torchrun.rdzv_configs["rank"] == 1


def test_forgotten_address_is_named():
    """nodes.yaml as it is: the address is a name that tells what is missing."""
    assert load_config_from_file(path("nodes")).main_process_ip == "address-of-machine-0"


@pytest.fixture
def plugin(monkeypatch):
    """FSDP's settings as a training process of fsdp2.yaml would make them from its environment."""
    for name, value in exported(launch("--config_file", path("fsdp2"), "train.py")).items():
        monkeypatch.setenv(name, value)
    return FullyShardedDataParallelPlugin()


def test_fsdp2_settings(plugin):
    """The plugin in the training process against what the comments of fsdp2.yaml claim."""
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
    assert plugin.cpu_ram_efficient_loading is False and plugin.activation_checkpointing is False
    assert not isinstance(plugin.cpu_offload, CPUOffloadPolicy)


def test_fsdp2_precision(plugin):
    """accelerate's policy for bf16 computes and also averages gradients in bf16; a run has them summed in float32."""
    plugin.set_mixed_precision("bf16")
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.bfloat16)
    keep_sums_exact(plugin)
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    "head, name",
    [(TriuneForMaskedLM, "bert-mini"), (TriuneForCausalLM, "gpt2-mini"), (TriuneForImageClassification, "vit-mini")],
)
def test_fsdp2_wraps_the_layers(plugin, head, name):
    """The modules that accelerate's policy picks of each kind of model against its layers."""
    with torch.device("meta"):
        model = head(preset(name))
    plugin.set_auto_wrap_policy(model)
    picked = [
        module
        for module in model.modules()
        if plugin.auto_wrap_policy(module=module, recurse=False, nonwrapped_numel=0)
    ]
    assert picked == list(model.model.layers) and all(type(module) is TransformerLayer for module in picked)


@FILES
def test_quoted_words(file):
    """YAML reads a bare `no` as false: accelerate's words are text."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert isinstance(content["distributed_type"], str) and isinstance(content["mixed_precision"], str)
    parallel = load_config_from_file(str(file)).distributed_type in PARALLEL
    assert parallel == (content["num_processes"] > 1)
