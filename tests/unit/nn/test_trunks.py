"""Trunks: formulas computed by hand, shapes, and the parameters that each task uses."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from multitask.nn.blocks import convolution, pooled_convolution
from multitask.nn.branches import Branches
from multitask.nn.copies import several
from multitask.nn.cross_stitch import CrossStitch, Stitch
from multitask.nn.experts import PLE, MMoE
from multitask.nn.mlp import mlp
from multitask.nn.mtan import MTAN
from multitask.nn.resnet import resnet
from multitask.nn.segnet import SegNet
from multitask.nn.tokens import Patches
from multitask.nn.with_losses import WithLosses
from multitask.run.record import recipe_digest
from multitask.run.resolvers import register
from multitask.run.sharing import users

CONFIGS = str(Path(__file__).parents[3] / "configs")
SMALL = {
    "segnet": ["trunk.channels=[8,16]", "trunk.depths=[2,1]"],
    "resnet18": ["trunk.width=4"],
    "lenet": [],
    "linear_relu": [],
    "mlp": ["trunk.widths=[16,8]"],
    "mlp_small": [],
    "mlp_smooth": [],
    "variational": [],
    "convnet": [],
    "unet_small": [],
    "hard_sharing_mlp": [],
    "mmoe_mlp": [],
    "ple_mlp": [],
    "cross_stitch_mlp": [],
    "transformer": [],
    "hard_sharing": [],
    "mmoe": [],
    "cgc": [],
    "ple": [],
    "cross_stitch": [],
    "mtan": ["trunk.channels=[4,8]"],
    "mtan_dense": ["trunk.channels=[4,8]"],
}
PER_TASK = ("hard_sharing", "mmoe", "cgc", "ple", "cross_stitch", "mtan", "mtan_dense")
PER_TASK += ("hard_sharing_mlp", "mmoe_mlp", "ple_mlp", "cross_stitch_mlp")


# Tested with models without a trunk, toys, molecules, text and other libraries; ``unet`` is a larger ``unet_small``.
ELSEWHERE = {
    *("none", "point", "schnet", "unet", "monai_resnet", "monai_segresnet"),
    *("encoder", "encoder_folder", "lora"),
}


def test_every_choice_is_tested():
    assert {file.stem for file in Path(CONFIGS, "trunk").glob("*.yaml")} == {*SMALL, *ELSEWHERE}


def configured(name: str, *overrides: str) -> nn.Module:
    register()
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        config = compose("train", overrides=[f"trunk={name}", *SMALL[name], *overrides])
    torch.manual_seed(0)
    return instantiate(config.trunk, _convert_="all")


def as_mapping(features: Any) -> dict[str, Tensor]:
    features = features.features if isinstance(features, WithLosses) else features
    return features if isinstance(features, dict) else {"all": features}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_users_found_in_the_graph_are_those_of_backward(name: str):
    trunk = configured(name)
    features = as_mapping(trunk(torch.randn(3, 1, 28, 28)))
    parameters = list(trunk.parameters())
    found = users(features, parameters)
    for task, output in features.items():
        gradients = torch.autograd.grad(output.sum(), parameters, retain_graph=True, allow_unused=True)
        assert [task in names for names in found] == [g is not None for g in gradients]


@pytest.mark.parametrize("name", SMALL)
def test_evaluation_treats_examples_independently(name: str):
    trunk = configured(name)
    images = torch.randn(4, 1, 28, 28)
    trunk(images)
    trunk.eval()
    whole, single = as_mapping(trunk(images)), as_mapping(trunk(images[1:2]))
    for task, output in whole.items():
        torch.testing.assert_close(output[1:2], single[task], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PER_TASK)
def test_trunk_returns_features_of_each_task_of_the_config(name: str):
    trunk = configured(name, "task=[multi_mnist/right,multi_mnist/left,multi_mnist/reconstruction]")
    assert list(trunk(torch.randn(2, 1, 28, 28))) == ["right", "left", "reconstruction"]


def shares(trunk: nn.Module, features: dict[str, Tensor]) -> dict[tuple[str, ...], set[str]]:
    found: dict[tuple[str, ...], set[str]] = {}
    named = dict(trunk.named_parameters())
    for name, tasks in zip(named, users(features, named.values()), strict=True):
        found.setdefault(tasks, set()).add(name)
    return found


def test_branches_share_only_the_trunk():
    trunk = Branches(["a", "b"], mlp([4]), partial(mlp, [3]))
    inputs = torch.randn(5, 6)
    features = trunk(inputs)
    assert shares(trunk, features) == {
        ("a", "b"): {"shared.0.weight", "shared.0.bias"},
        ("a",): {"branches.a.0.weight", "branches.a.0.bias"},
        ("b",): {"branches.b.0.weight", "branches.b.0.bias"},
    }
    assert torch.equal(features["b"], trunk.branches["b"](trunk.shared(inputs)))


def test_mmoe_by_hand():
    trunk = MMoE(["a", "b"], partial(mlp, [4]), experts=3)
    inputs = torch.randn(5, 6)
    features = trunk(inputs)
    for task in ("a", "b"):
        scores = inputs @ trunk.gates[task].linear.weight.T
        weights = scores.exp() / scores.exp().sum(1, keepdim=True)
        expected = sum(weights[:, i, None] * trunk.experts[i](inputs) for i in range(3))
        torch.testing.assert_close(features[task], expected)
    by_users = Counter({tasks: len(names) for tasks, names in shares(trunk, features).items()})
    assert by_users == {("a", "b"): 6, ("a",): 1, ("b",): 1}


def test_experts_start_at_different_parameters():
    trunk = MMoE(["a"], partial(mlp, [4]), experts=2)
    trunk(torch.randn(5, 6))
    assert not torch.equal(trunk.experts[0][0].weight, trunk.experts[1][0].weight)


def test_cgc_by_hand():
    trunk = PLE(["a", "b"], [partial(mlp, [4])], own=1, shared=2)
    inputs = torch.randn(5, 6)
    features = trunk(inputs)
    layer = trunk.layers[0]
    for task in ("a", "b"):
        weights = (inputs @ layer.gates[task].linear.weight.T).softmax(1)
        experts = [layer.own[task][0], *layer.shared]
        expected = sum(weights[:, i, None] * expert(inputs) for i, expert in enumerate(experts))
        torch.testing.assert_close(features[task], expected)
    found = shares(trunk, features)
    assert all(".shared." in name for name in found["a", "b"])
    assert all(".a." in name for name in found["a",])


def test_ple_passes_all_experts_through_the_shared_gate():
    trunk = PLE(["a", "b"], [partial(mlp, [4]), partial(mlp, [3])], own=2, shared=1)
    inputs = torch.randn(5, 6)
    features = trunk(inputs)
    first, last = trunk.layers
    everything = [*first.own["a"], *first.own["b"], *first.shared]
    weights = first.shared_gate(inputs)
    assert weights.shape == (5, 5)
    shared = sum(weights[:, i, None] * expert(inputs) for i, expert in enumerate(everything))
    own = first.gates["a"](inputs)
    experts = [*first.own["a"], *first.shared]
    of_a = sum(own[:, i, None] * expert(inputs) for i, expert in enumerate(experts))
    choice = last.gates["a"](of_a)
    expected = sum(
        choice[:, i, None] * y
        for i, y in enumerate([*(e(of_a) for e in last.own["a"]), last.shared[0](shared)])
    )
    torch.testing.assert_close(features["a"], expected)
    assert last.shared_gate is None
    found = shares(trunk, features)
    assert all(name.startswith("layers.0.gates.a") or name.startswith("layers.1.") for name in found["a",])


def test_stitch_by_hand():
    stitch = Stitch(2, own=0.7)
    features = torch.randn(2, 5, 3, 4, 4)
    mixed = stitch(features)
    torch.testing.assert_close(mixed[0], 0.7 * features[0] + 0.3 * features[1])
    with torch.no_grad():
        stitch.weight[1] = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    mixed = stitch(features)
    torch.testing.assert_close(mixed[0, :, 1], features[1, :, 1])
    torch.testing.assert_close(mixed[1, :, 1], 2 * features[0, :, 1])
    torch.testing.assert_close(mixed[1, :, 0], 0.3 * features[0, :, 0] + 0.7 * features[1, :, 0])


def test_cross_stitch_without_mixing_is_one_network_per_task():
    trunk = CrossStitch(["a", "b"], [partial(mlp, [4]), partial(mlp, [3])], own=1.0)
    inputs = torch.randn(5, 6)
    features = trunk(inputs)
    torch.testing.assert_close(features["a"], trunk.stages[1][0](trunk.stages[0][0](inputs)))


def test_cross_stitch_of_one_task_does_not_mix():
    trunk = CrossStitch(["a"], [partial(mlp, [4])], own=0.9)
    inputs = torch.randn(5, 6)
    torch.testing.assert_close(trunk(inputs)["a"], trunk.stages[0][0](inputs))


def test_cross_stitch_weights_are_saved_in_a_checkpoint():
    first = CrossStitch(["a", "b"], [partial(mlp, [4])])
    first(torch.randn(5, 6))
    with torch.no_grad():
        first.stitches[0].weight.normal_()
    second = CrossStitch(["a", "b"], [partial(mlp, [4])])
    second.load_state_dict(first.state_dict())
    inputs = torch.randn(5, 6)
    torch.testing.assert_close(second(inputs)["b"], first(inputs)["b"])


def test_cross_stitch_rejects_a_share_above_one():
    with pytest.raises(ValueError, match=r"trunk\.own=1\.5"):
        CrossStitch(["a"], [partial(mlp, [4])], own=1.5)


def test_mtan_by_hand():
    trunk = MTAN(["a", "b"], [4, 6], norm="none")
    images = torch.randn(2, 3, 8, 8)
    features = trunk(images)
    first, second = trunk.blocks
    entry = first.entry(images)
    shared = first.exit(entry)
    attended = first.masks["b"](entry) * shared
    entry = second.entry(max_pool2d(shared, 2))
    seen = torch.cat([entry, max_pool2d(second.carry(attended), 2)], dim=1)
    torch.testing.assert_close(features["b"], second.masks["b"](seen) * second.exit(entry))
    assert features["b"].shape == (2, 6, 4, 4)


@pytest.mark.parametrize("size", [(16, 16), (17, 13)])
def test_dense_trunks_keep_the_size_of_the_image(size: tuple[int, int]):
    images = torch.randn(2, 3, *size)
    dense = MTAN(["a"], [4, 8, 8], dense=True, norm="group")(images)["a"]
    assert dense.shape == (2, 4, *size)
    assert SegNet([4, 8, 8], [2, 1, 2], norm="group")(images).shape == (2, 4, *size)


def test_segnet_unpools_to_the_positions_of_the_maxima():
    trunk = SegNet([1], [1], norm="none")
    images = torch.rand(1, 1, 4, 4)
    trunk(images)
    for level in (trunk.down[0], trunk.up[0]):
        with torch.no_grad():
            level[0][0].weight.zero_()[0, 0, 1, 1] = 1.0
            level[0][0].bias.zero_()
    kept = (images == max_pool2d(images, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)) * images
    torch.testing.assert_close(trunk(images), kept)


def test_segnet_needs_one_depth_per_level():
    with pytest.raises(ValueError, match=r"trunk.depths=\[2\]"):
        SegNet([8, 16], [2])


def test_resnet18_has_the_number_of_parameters_of_the_paper():
    trunk = resnet()
    assert trunk(torch.randn(1, 3, 64, 64)).shape == (1, 512)
    # torchvision's resnet18 has 11,689,512 of which its last layer, our heads, has 513,000.
    assert sum(p.numel() for p in trunk.parameters()) == 11_176_512


@pytest.mark.parametrize(("stem", "edge"), [("large", 1), ("small", 4)])
def test_resnet_maps(stem: Any, edge: int):
    trunk = resnet(width=8, stem=stem, pool=False, norm="group")
    assert trunk(torch.randn(2, 3, 32, 32)).shape == (2, 64, edge, edge)


def test_group_normalization_keeps_examples_independent():
    trunk = resnet(width=8, stem="small", norm="group")
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(trunk(images)[:2], trunk(images[:2]), atol=1e-5, rtol=1e-5)


def test_patches_by_hand():
    patches = Patches(size=4, width=5)
    images = torch.randn(2, 3, 8, 12)
    tokens = patches(images)
    assert tokens.shape == (2, 6, 5)
    weight = patches.project.weight.flatten(1)
    # The fourth of six patches is the first one of the second row.
    expected = images[:, :, 4:8, 0:4].flatten(1) @ weight.T + patches.project.bias + patches.positions[3]
    torch.testing.assert_close(tokens[:, 3], expected)


def test_mlp_flattens_its_inputs_and_names_its_layers():
    trunk = mlp([3, 2])
    images = torch.randn(5, 1, 4, 4)
    assert torch.equal(trunk(images), trunk(images.flatten(1)))
    assert [name for name, _ in trunk.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_blocks():
    images = torch.randn(2, 3, 8, 8)
    assert convolution(6, stride=2)(images).shape == (2, 6, 4, 4)
    assert pooled_convolution(6, kernel=5, norm="group")(images).shape == (2, 6, 4, 4)
    with pytest.raises(ValueError, match=r"trunk\.norm=layer"):
        convolution(6, norm="layer")  # type: ignore[arg-type]


def test_copies_that_share_parameters_are_rejected():
    with pytest.raises(ValueError, match=r"trunk.expert.*share parameters"):
        MMoE(["a"], partial(nn.Sequential, nn.LazyLinear(3)))
    with pytest.raises(ValueError, match=r"trunk.expert.*_partial_"):
        MMoE(["a"], mlp([3]))  # type: ignore[arg-type]


def test_nested_nodes_are_instantiated_separately():
    node = {
        "_target_": "torch.nn.Sequential",
        "_args_": [{"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}],
    }
    make = instantiate(
        {"_target_": "hydra.utils.instantiate", "_partial_": True, "_recursive_": False, "config": node},
        _convert_="all",
    )
    first, second = several(make, 2, "trunk.expert")
    assert first[0].weight.shape == (3, 2)
    assert not torch.equal(first[0].weight, second[0].weight)


def test_single_task_baseline_of_a_per_task_trunk_has_the_digest_of_the_joint_run():
    def digest(*tasks: str) -> str:
        config = {
            "paths": {"root": "/here"},
            "data": {},
            "trainer": {},
            "trunk": {"_target_": "multitask.nn.experts.MMoE", "tasks": list(tasks), "experts": 4},
            "tasks": {task: {"target": task} for task in tasks},
        }
        return recipe_digest(config, "left")

    assert digest("left", "right") == digest("left")
