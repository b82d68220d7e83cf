"""Compressed models compute what the dense ones do: all architectures, in memory and from folders.

Bit by bit in exact mode, in the dtype of the file and in others, and after the way back. What the
reports say of memory is what the models then take.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

import codecllm  # noqa: E402
from architectures.table import DTYPES, PLAIN, TRANSFORMERS  # noqa: E402
from codecllm.model.skeleton import resident_bytes  # noqa: E402
from codecllm.nn import CodedModule  # noqa: E402

every_architecture = pytest.mark.parametrize("row", TRANSFORMERS, ids=str)


def build(row, dtype=torch.bfloat16):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(row.kind, **row.options)
    return getattr(transformers, row.head).from_config(config, dtype=dtype).eval()


def outputs(found):
    """All floating tensors of what a model returns."""
    if isinstance(found, torch.Tensor):
        return [found] if found.is_floating_point() else []
    if hasattr(found, "to_tuple"):
        found = found.to_tuple()
    return [t for part in found for t in outputs(part)] if isinstance(found, tuple | list) else []


@torch.inference_mode()
def run(model, row):
    given = row.inputs()
    return outputs(
        model(**{k: v.to(model.dtype) if v.is_floating_point() else v for k, v in given.items()})
    )


def assert_equal(found, expected):
    assert expected and len(found) == len(expected)
    assert all(t.isfinite().all() for t in expected)
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.dtype == b.dtype and torch.equal(a, b), f"output {number}"


def held_bytes(model):
    """Parameters and buffers of a model, dense or compressed, each once."""
    sizes = {}
    for module in model.modules():
        if isinstance(module, CodedModule):
            sizes[module._parameters["weight"].data_ptr()] = resident_bytes(module.coded)
            own = [module._parameters.get("bias")]
            own += [
                b for n, b in module._buffers.items() if not n.startswith(("weight_", "dtype_"))
            ]
        else:
            own = [*module._parameters.values(), *module._buffers.values()]
        sizes.update({t.data_ptr(): t.nbytes for t in own if t is not None and t.numel()})
    return sum(sizes.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_architecture
def test_in_memory(row, dtype):
    if dtype not in row.dtypes:
        pytest.skip("the dense model does not run in it")
    expected = run(build(row).to(dtype), row)
    model = build(row)
    before = held_bytes(model)
    report = codecllm.compress_model_weights(model, exact=True)
    assert report.dense_bytes == before
    assert (report.memory.plain_bytes, report.memory.bytes) == (before, held_bytes(model))
    assert_equal(run(model.to(dtype), row), expected)
    codecllm.decompress_model(model)
    assert_equal(run(model, row), expected)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def make(row):
        if str(row) not in made:
            folder = tmp_path_factory.mktemp("folder")
            build(row).save_pretrained(folder / "src")
            report = codecllm.compress_checkpoint(folder / "src", folder / "dst")
            made[str(row)] = folder, report
        return made[str(row)]

    return make


def listed_weights(model: nn.Module) -> int:
    """In the lists of the matrices of coding fixed, tied ones once."""
    coded = {id(m.streams[0]): m.coded.info for m in model.modules() if isinstance(m, CodedModule)}
    return sum(s.listed for info in coded.values() for s in info.segments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_architecture
def test_from_a_folder(folders, row, dtype):
    if dtype not in row.dtypes:
        pytest.skip("the dense model does not run in it")
    folder, report = folders(row)
    dense = getattr(transformers, row.head).from_pretrained(folder / "src", dtype=dtype).eval()
    expected = run(dense, row)
    for mode in ("fused", "disk"):
        model = codecllm.load_compressed_model(folder / "dst", mode, exact=True, dtype=dtype)
        assert any(isinstance(m, CodedModule) for m in model.modules()) == (mode == "fused")
        assert_equal(run(model.eval(), row), expected)
        if dtype == torch.bfloat16 and mode == "fused":
            assert report.memory.plain_bytes == held_bytes(dense)
            # All but the weights that fixed lists: nobody has counted them yet.
            listed = held_bytes(model) - report.memory.bytes
            assert 0 <= listed == 4 * listed_weights(model)


@every_architecture
def test_saved_from_memory(tmp_path, row):
    dtype = row.dtypes[0]
    model = build(row, dtype)
    expected = run(model, row)
    codecllm.compress_model_weights(model)
    model.save_pretrained(tmp_path / "saved")
    loaded = getattr(transformers, row.head).from_pretrained(tmp_path / "saved", dtype=dtype)
    codecllm.set_exact(loaded)
    assert any(isinstance(m, CodedModule) for m in loaded.modules())
    assert_equal(run(loaded.eval(), row), expected)


@pytest.fixture
def without_fast_path():
    """Attention has a second implementation, for plain tensors, which adds in another order."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PLAIN)
@torch.inference_mode()
def test_plain_modules(tmp_path, without_fast_path, name, dtype):
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return PLAIN[name]().to(torch.bfloat16).eval()

    x = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = fresh().to(dtype)(x)
    with torch.inference_mode(False):
        model = fresh()
        codecllm.compress_model_weights(model, exact=True)
        codecllm.save_file(model, tmp_path / "m.safetensors")
        loaded = codecllm.load_file(fresh(), tmp_path / "m.safetensors")
        codecllm.set_exact(loaded)
    assert torch.equal(model.to(dtype)(x), expected)
    assert torch.equal(loaded.to(dtype)(x), expected)
