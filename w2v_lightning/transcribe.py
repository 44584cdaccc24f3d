"""`transcribe FILE... --model DIR`: the text of audio files, each heard whole."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers

from w2v_lightning.data.audio import read_audio
from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.batch import normalised
from w2v_lightning.errors import InputError
from w2v_lightning.model import wav2vec2


def main(args: Sequence[str]) -> None:
    """Print one line of text per file; with several files, each line starts with the file's name and a tab."""
    options = _parse(args)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for path, text in transcribe(options.files, options.model, options.device):
        print(text if len(options.files) == 1 else f"{path}\t{text}", flush=True)


@torch.inference_mode()
def transcribe(files: Sequence[str | Path], model: str, device: str | None = None) -> Iterator[tuple[str, str]]:
    """(file, text) of each audio file: WAV, FLAC, OGG and what else libsndfile reads, any sample rate, any channels.

    Args:
        files: audio files.
        model: Hugging Face name or folder of a wav2vec2 CTC model.
        device: such as "cuda"; by default the GPU if there is one.

    Raises:
        InputError: the model or a file cannot be read, or a file is too short for one frame.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network, vocabulary, do_normalise = wav2vec2.from_pretrained(model, {})
    network.eval().to(device)
    spec = wav2vec2.input_spec(network.config, vocabulary, do_normalise)
    for file in files:
        waveform_T = read_audio(AudioRef(str(file)))
        if len(waveform_T) < spec.min_samples:
            raise InputError(f"{file}: {len(waveform_T)} samples at 16 kHz, the model needs {spec.min_samples}.")
        waveforms_BT = torch.from_numpy(waveform_T)[None].to(device)
        if do_normalise:
            waveforms_BT = normalised(waveforms_BT, torch.tensor([len(waveform_T)]))
        num_samples_B = torch.tensor([len(waveform_T)], device=device)
        logits_BFV = wav2vec2.ctc_logits(network, waveforms_BT, num_samples_B)
        yield str(file), vocabulary.decode(logits_BFV[0].argmax(dim=-1).tolist())


def _parse(args: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m w2v_lightning transcribe", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio of any sample rate")
    parser.add_argument("--model", required=True, help="Hugging Face name or folder of a wav2vec2 CTC model")
    parser.add_argument("--device", help="such as cpu or cuda; by default the GPU if there is one")
    return parser.parse_args(args)
