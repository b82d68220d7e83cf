"""What lies beside the weights of a folder: other weights, adapters, cards, the config."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import codecllm
from model_cases import assert_same_folder

FOREIGN = [
    "consolidated.safetensors",
    "flax_model.msgpack",
    "onnx/model.onnx",
    "onnx/config.json",
    "original/consolidated.00.pth",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "training_args.bin",
]
KEPT = ["merges.txt", "original/params.json", "tokenizer.model"]


def put(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 1000)


def test_other_weights_are_left_out_and_named(folder, tmp_path):
    put(folder, FOREIGN + KEPT)
    estimated = codecllm.estimate_checkpoint(folder)
    report = codecllm.compress_checkpoint(folder, tmp_path / "dst")
    assert report.extra["left_out"] == dict.fromkeys(FOREIGN, 1000) == estimated.extra["left_out"]
    assert "left out: 8 files of other weights, 0.008 MiB: consolidated.safetensors, " in "\n".join(
        report.lines()
    )
    for name in KEPT:
        assert (tmp_path / "dst" / name).read_bytes() == b"x" * 1000
    assert not any((tmp_path / "dst" / name).exists() for name in FOREIGN)


def test_parts_of_a_sentence_transformer_are_kept(folder, tmp_path):
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "2_Dense"}]))
    put(folder, ["2_Dense/model.safetensors", "2_Dense/config.json", "1_Old/pytorch_model.bin"])
    report = codecllm.compress_checkpoint(folder, tmp_path / "dst")
    assert (tmp_path / "dst" / "2_Dense" / "model.safetensors").is_file()
    assert list(report.extra["left_out"]) == ["1_Old/pytorch_model.bin"]


def test_an_adapter_is_refused(tmp_path):
    (tmp_path / "src").mkdir()
    weight = {"base_model.model.q_proj.lora_A.weight": torch.randn(64, 512).bfloat16()}
    save_file(weight, tmp_path / "src" / "adapter_model.safetensors")
    (tmp_path / "src" / "adapter_config.json").write_text("{}")
    for work in (codecllm.compress_checkpoint, lambda src, dst: codecllm.estimate_checkpoint(src)):
        with pytest.raises(ValueError, match=r"is a PEFT adapter, not a model.*merge_and_unload"):
            work(tmp_path / "src", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


CARDS = [
    "",
    "# A model\n\ntext\r\n",
    "---\nlicense: mit\n---\n# A model",
    "---\nlicense: mit\n---\n",
]


@pytest.mark.parametrize("card", CARDS, ids=["none", "text", "front matter", "front matter only"])
def test_the_card_says_how_to_load_and_comes_back_as_it_was(folder, tmp_path, card):
    if card:
        (folder / "README.md").write_bytes(card.encode())
    codecllm.compress_checkpoint(folder, tmp_path / "dst")
    text = (tmp_path / "dst" / "README.md").read_bytes().decode()
    assert text.index("import codecllm") < text.index("from transformers import AutoModel")
    assert text.startswith("---\n") == card.startswith("---\n")
    codecllm.decompress_checkpoint(tmp_path / "dst", tmp_path / "back")
    back = tmp_path / "back" / "README.md"
    assert (back.read_bytes().decode() if back.exists() else "") == card


def test_a_card_that_is_no_text_stays(folder, tmp_path):
    (folder / "README.md").write_bytes(b"\xff\xfe")
    codecllm.compress_checkpoint(folder, tmp_path / "dst")
    assert (tmp_path / "dst" / "README.md").read_bytes() == b"\xff\xfe"


def test_fields_that_make_room_come_back(folder, tmp_path):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), "transformers_weights": "weights.safetensors"}
    path.write_text(json.dumps(config))
    codecllm.compress_checkpoint(folder, tmp_path / "dst")
    packed = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert packed["transformers_weights"] == "import_codecllm_first.safetensors"
    codecllm.decompress_checkpoint(tmp_path / "dst", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config
    assert_same_folder(folder, tmp_path / "back")


def test_verify_says_which_folder_is_which(folder, tmp_path):
    dst = tmp_path / "dst"
    codecllm.compress_checkpoint(folder, dst)
    with pytest.raises(ValueError, match=rf"the original comes first, `codecllm verify {folder}"):
        codecllm.verify_checkpoint(dst, folder)
    for one in (folder, dst):
        with pytest.raises(ValueError, match="are the same folder: give the original first"):
            codecllm.verify_checkpoint(one, one)
    codecllm.compress_checkpoint(folder, tmp_path / "twice")
    with pytest.raises(ValueError, match="both compressed; the original comes first"):
        codecllm.verify_checkpoint(dst, tmp_path / "twice")


def test_verify_counts_what_was_rounded(folder, tmp_path):
    codecllm.compress_checkpoint(folder, tmp_path / "dst", format="int8")
    assert codecllm.verify_checkpoint(folder, tmp_path / "dst").rounded == 7
    assert codecllm.verify_checkpoint(tmp_path / "dst").rounded == 7


def test_memory_is_not_known_where_no_model_can_be_built(folder):
    report = codecllm.estimate_checkpoint(folder)
    assert report.memory is None
    assert "in memory: not known, config.json names no architectures" in report.lines()
