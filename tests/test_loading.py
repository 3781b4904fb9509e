"""Loading: what is refused in one line, what `auto` chooses, tokens."""

import pytest
import torch

from skillstack_helpers import SkillStackError, loading
from skillstack_helpers.loading import load_backbone


@pytest.mark.parametrize(
    "name, words",
    [
        ("./nowhere", "model folder ./nowhere does not exist"),
        ("minlm", "cannot load model 'minlm' (did you mean 'minilm'?)"),
        ("no/such-model", "cannot load model 'no/such-model'"),
    ],
)
def test_unknown_model_is_one_line(name, words):
    with pytest.raises(SkillStackError) as caught:
        load_backbone(name)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(SkillStackError, match="holds no model: config.json is missing"):
        load_backbone(str(tmp_path))


def test_gated_model_without_a_token(monkeypatch):
    import transformers

    def refuse(*_, **__):
        raise OSError("You are trying to access a gated repo.\nMake sure ... 401")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(SkillStackError, match="is gated: accept its licence .* HF_TOKEN") as caught:
        load_backbone("meta-llama/Llama-3.2-1B-Instruct")
    assert "\n" not in str(caught.value)


def test_auto_is_minilm_without_cuda_and_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert load_backbone("auto").name == "minilm"
    assert "minilm" in capsys.readouterr().out


def test_encoder_decoder_is_refused(tmp_path):
    from transformers import T5Config

    T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1).save_pretrained(tmp_path)
    with pytest.raises(SkillStackError, match="neither encoder nor decoder only"):
        load_backbone(str(tmp_path))


def test_platform_token_is_used_and_never_printed(monkeypatch, capsys):
    import sys
    import types

    colab = types.ModuleType("google.colab")
    colab.userdata = types.SimpleNamespace(get=lambda name: "hf_secret" if name else None)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    loading._use_platform_token()
    import os

    assert os.environ.pop("HF_TOKEN") == "hf_secret"
    assert "hf_secret" not in "".join(capsys.readouterr())


def test_a_message_that_only_holds_401_is_not_called_gated():
    assert "licence" not in loading._explain("x", OSError("file 4015, aggregated size 401"))
    words = "401 Client Error. Cannot access gated repo for url"
    assert "is gated: accept its licence" in loading._explain("x", OSError(words))
