"""load_compressed_model: classes, hub names, decoding while loading; and without codecllm."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

import codecllm  # noqa: E402
from codecllm.integrations.transformers import CodecllmConfig  # noqa: E402
from codecllm.nn import CodedModule  # noqa: E402

IDS = torch.tensor([[1, 2, 3, 4, 100]])
SIZES = {
    "vocab_size": 128,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def build(kind="llama", auto="AutoModelForCausalLM", **options):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **options})
    return getattr(transformers, auto).from_config(config, dtype=torch.bfloat16).eval()


@torch.inference_mode()
def logits(model):
    return model(IDS).logits


def compress(model, folder):
    model.save_pretrained(folder / "src")
    codecllm.compress_checkpoint(folder / "src", folder / "dst")
    return folder / "dst"


@pytest.fixture
def packed(tmp_path):
    return compress(build(), tmp_path)


def coded_modules(model):
    return sum(isinstance(m, CodedModule) for m in model.modules())


@pytest.mark.parametrize(
    ("kind", "auto"),
    [
        ("bert", "AutoModelForMaskedLM"),
        ("bert", "AutoModelForSequenceClassification"),
        ("llama", "AutoModelForSequenceClassification"),
        ("bert", "AutoModel"),
    ],
)
@pytest.mark.parametrize("mode", ["fused", "disk"])
def test_the_class_is_the_one_that_was_saved(tmp_path, kind, auto, mode):
    model = build(kind, auto, pad_token_id=0)
    loaded = codecllm.load_compressed_model(compress(model, tmp_path), mode, exact=True)
    assert isinstance(loaded, type(model))
    with torch.inference_mode():
        assert torch.equal(loaded(IDS)[0], model(IDS)[0])


def test_without_architectures_the_configuration_decides(packed):
    config = json.loads((packed / "config.json").read_text())
    del config["architectures"]
    (packed / "config.json").write_text(json.dumps(config))
    assert isinstance(codecllm.load_compressed_model(packed), transformers.LlamaForCausalLM)


@pytest.mark.parametrize("mode", ["fused", "disk"])
def test_a_class_whose_code_is_in_the_folder(tmp_path, monkeypatch, mode):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    build().save_pretrained(tmp_path / "src")
    (tmp_path / "src" / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\n\n\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    pass\n"
    )
    path = tmp_path / "src" / "config.json"
    own = {
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    report = codecllm.compress_checkpoint(tmp_path / "src", tmp_path / "dst")
    assert report.extra["memory_unknown"] == "transformers has no OwnForCausalLM"
    loaded = codecllm.load_compressed_model(
        tmp_path / "dst", mode, exact=True, trust_remote_code=True
    )
    assert type(loaded).__name__ == "OwnForCausalLM"
    assert (coded_modules(loaded) > 0) == (mode == "fused")
    assert torch.equal(logits(loaded.eval()), logits(build()))


@pytest.mark.parametrize("mode", ["fused", "disk"])
def test_a_repository_of_the_hub(packed, monkeypatch, mode):
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        return str(packed)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    loaded = codecllm.load_compressed_model("owner/name", mode, revision="v1", token="secret")
    assert asked == [("owner/name", {"revision": "v1", "token": "secret"})]
    assert (coded_modules(loaded) > 0) == (mode == "fused")


def test_neither_a_folder_nor_a_repository(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        FileNotFoundError, match="owner/name is no folder, and the hub did not give"
    ):
        codecllm.load_compressed_model("owner/name", local_files_only=True)
    with pytest.raises(FileNotFoundError, match=r"^a/b/c is not a folder"):
        codecllm.load_compressed_model("a/b/c")


def test_dequantize_beside_a_compressed_folder(packed):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        packed, quantization_config=CodecllmConfig(dequantize=True)
    )
    assert coded_modules(loaded) == 0 and not hasattr(loaded.config, "quantization_config")
    assert torch.equal(logits(loaded), logits(build()))


def test_disk_mode_loads_what_from_pretrained_would(tmp_path):
    model = build(tie_word_embeddings=True)
    model.generation_config.max_length = 33
    packed = compress(model, tmp_path)
    loaded = codecllm.load_compressed_model(packed, mode="disk")
    assert loaded.generation_config.max_length == 33 and loaded.name_or_path == str(packed)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert not hasattr(loaded.config, "quantization_config")
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    before = json.loads((tmp_path / "src" / "config.json").read_text())
    assert {**again, "transformers_version": ""} == {**before, "transformers_version": ""}


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak is read from /proc")
def test_disk_mode_peaks_at_the_dense_model_and_a_few_tensors(tmp_path):
    """Not at streams and dense weights together, mapped files included."""
    model = build(hidden_size=1024, intermediate_size=2048, num_hidden_layers=6, vocab_size=2048)
    dense = sum(p.nbytes for p in model.parameters())
    largest = max(p.nbytes for p in model.parameters())
    packed = compress(model, tmp_path)
    coded = sum(p.stat().st_size for p in packed.glob("*.safetensors"))
    del model
    program = (
        "import sys, codecllm, torch, transformers, codecllm.integrations.loading\n"
        "from transformers import LlamaForCausalLM\n"
        "def status(field):\n"
        "    text = open('/proc/self/status').read()\n"
        "    return 1024 * int(text.split(field + ':')[1].split()[0])\n"
        "codecllm.load_compressed_model(sys.argv[2], mode='disk')\n"
        "idle = status('VmRSS')\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "model = codecllm.load_compressed_model(sys.argv[1], mode='disk')\n"
        "print(status('VmHWM') - idle)\n"
    )
    (tmp_path / "small").mkdir()
    small = compress(build(), tmp_path / "small")
    command = [sys.executable, "-c", program, str(packed), str(small)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=ENVIRONMENT, check=True)
    # The loader has four threads, each with a tensor that is read and decoded, 1.7 times its size.
    allowed = dense + 4 * 2 * largest
    assert dense < int(done.stdout) < allowed < dense + coded


def test_without_the_import_the_error_names_it(packed):
    program = (
        "import sys\n"
        "from transformers import AutoModelForCausalLM\n"
        "AutoModelForCausalLM.from_pretrained(sys.argv[1], ignore_mismatched_sizes=True)\n"
    )
    command = [sys.executable, "-c", program, str(packed)]
    done = subprocess.run(command, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True, check=False)
    assert done.returncode == 1
    assert "import_codecllm_first" in done.stderr.splitlines()[-1]


def test_the_hint_leaves_no_trace_in_a_loaded_model(packed, tmp_path):
    assert "import_codecllm_first" in (packed / "config.json").read_text()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(packed)
    assert not hasattr(loaded.config, "transformers_weights")


def test_folders_of_before_the_hint_load(packed):
    config = json.loads((packed / "config.json").read_text())
    del config["transformers_weights"]
    (packed / "config.json").write_text(json.dumps(config))
    assert coded_modules(transformers.AutoModelForCausalLM.from_pretrained(packed)) > 0


def test_coded_experts_are_refused_and_not_drawn_at_random(tmp_path, monkeypatch):
    """A folder of somebody who had no transformers, and experts with names that we do not know."""
    with monkeypatch.context() as patch:
        patch.setattr("codecllm.model.checkpoint._NOT_OURS", ())
        patch.setattr("codecllm.model.skeleton.skeleton_builders", [])
        model = build("mixtral", num_local_experts=2, num_key_value_heads=4)
        packed = compress(model, tmp_path)
    with pytest.raises(ValueError, match=r"merged with others.* with --skip '.*experts"):
        codecllm.load_compressed_model(packed)
    dense = codecllm.load_compressed_model(packed, mode="disk")
    assert torch.equal(logits(dense.eval()), logits(model))


@pytest.fixture
def fp8(tmp_path):
    """A checkpoint as DeepSeek's: fp8 weights in blocks of 128 x 128, a scale for each beside."""
    build().save_pretrained(tmp_path / "src")
    state = {}
    for name, w in load_file(tmp_path / "src" / "model.safetensors").items():
        if "_proj" not in name:
            state[name] = w
            continue
        blocks = w.float().reshape(w.shape[0] // 128, 128, w.shape[1] // 128, 128)
        scale = blocks.abs().amax((1, 3), keepdim=True) / 448
        state[name] = (blocks / scale).reshape(w.shape).to(torch.float8_e4m3fn)
        state[f"{name}_scale_inv"] = scale.reshape(blocks.shape[0], -1)
    save_file(state, tmp_path / "src" / "model.safetensors", metadata={"format": "pt"})
    path = tmp_path / "src" / "config.json"
    quantization = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    config = {**json.loads(path.read_text()), "quantization_config": quantization}
    path.write_text(json.dumps(config))
    return tmp_path / "src"


def test_fp8_with_block_scales(fp8, tmp_path):
    report = codecllm.compress_checkpoint(fp8, tmp_path / "dst")
    coded = {x.name: x.weight_format for x in report.of("coded")}
    assert coded["model.layers.0.mlp.up_proj.weight"] == "fp8_e4m3"
    assert coded["lm_head.weight"] == "bf16" and len(coded) == 16
    assert report.memory is None and "decoded while it loads" in report.extra["memory_unknown"]
    assert codecllm.verify_checkpoint(fp8, tmp_path / "dst").ok
    codecllm.decompress_checkpoint(tmp_path / "dst", tmp_path / "back")
    config = [json.loads((f / "config.json").read_text()) for f in (fp8, tmp_path / "back")]
    assert config[0] == config[1]
    assert 'mode="disk"' in (tmp_path / "dst" / "README.md").read_text()
    with pytest.raises(ValueError, match=r'quantized with fp8.*mode="disk".*codecllm decompress'):
        codecllm.load_compressed_model(tmp_path / "dst")
    expected = transformers.AutoModelForCausalLM.from_pretrained(fp8).eval()
    loaded = codecllm.load_compressed_model(tmp_path / "dst", mode="disk")
    assert torch.equal(logits(loaded.eval()), logits(expected))


def test_fp8_is_not_rounded_again(fp8, tmp_path):
    with pytest.raises(ValueError, match="'int8' would round it again"):
        codecllm.compress_checkpoint(fp8, tmp_path / "dst", format="int8")
