import numpy as np
import pytest
import torch
from corpus import spell
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from w2v_lightning.data.batch import Batch, InputSpec, pad

DEVICE_TENSORS = ("waveforms_BT", "labels_BU", "time_mask_BF", "channel_mask_BC", "masked_M", "negatives_MK")
COUNTS = ("num_samples_B", "num_frames_B", "num_labels_B")


def a_batch(**others) -> Batch:
    fields = {
        "waveforms_BT": torch.zeros(2, 16_000),
        "num_samples_B": torch.tensor([16_000, 8_000]),
        "num_frames_B": torch.tensor([49, 24]),
        "labels_BU": torch.tensor([[5, 6, 7], [8, 0, 0]]),
        "num_labels_B": torch.tensor([3, 1]),
        "ids": ["a", "b"],
        "texts": ["ETA", "O"],
        "time_mask_BF": torch.zeros(2, 49, dtype=torch.bool),
        "channel_mask_BC": torch.zeros(2, 768, dtype=torch.bool),
        "masked_M": torch.tensor([3, 4, 50]),
        "negatives_MK": torch.zeros(3, 100, dtype=torch.int32),
    }
    return Batch(**fields | others)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"conv_dim": (32,) * 3, "conv_kernel": (20, 8, 4), "conv_stride": (10, 8, 4)},
        {"conv_dim": (32,) * 2, "conv_kernel": (2, 5), "conv_stride": (2, 3)},
    ],
)
def test_num_frames_is_what_transformers_computes(shape):
    config = Wav2Vec2Config(**shape)
    spec = InputSpec(conv_kernel=tuple(config.conv_kernel), conv_stride=tuple(config.conv_stride))
    lengths = np.concatenate([np.arange(spec.min_samples, 2000), np.random.default_rng(0).integers(2000, 600_000, 500)])
    bare = type("Bare", (), {"config": config})()
    expected = Wav2Vec2Model._get_feat_extract_output_lengths(bare, torch.from_numpy(lengths), add_adapter=False)
    assert spec.num_frames(lengths).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("num_samples", "num_frames"),
    [(0, 0), (1, 0), (399, 0), (400, 1), (719, 1), (720, 2), (16_000, 49), (320_000, 999)],
)
def test_num_frames_of_wav2vec2_base_for_any_kind_of_number(num_samples, num_frames):
    spec = InputSpec()
    assert spec.num_frames(num_samples) == num_frames
    assert spec.num_frames(np.array([num_samples])).tolist() == [num_frames]
    assert spec.num_frames(torch.tensor([num_samples])).tolist() == [num_frames]


def test_num_frames_is_the_length_that_the_convolutions_put_out():
    config = Wav2Vec2Config(conv_dim=(4,) * 7, feat_extract_norm="layer", hidden_size=16, num_hidden_layers=0)
    extractor = Wav2Vec2Model(config).feature_extractor
    for num_samples in (400, 719, 720, 16_000, 16_123):
        assert extractor(torch.zeros(1, num_samples)).shape[-1] == InputSpec().num_frames(num_samples)


@pytest.mark.parametrize("kernel", [(10, 3, 3, 3, 3, 2, 2), (20, 8, 4)])
def test_min_samples_is_the_shortest_that_gives_a_frame(kernel):
    spec = InputSpec(conv_kernel=kernel, conv_stride=(5, 2, 2, 2, 2, 2, 2) if len(kernel) == 7 else (10, 8, 4))
    assert spec.num_frames(spec.min_samples) == 1
    assert spec.num_frames(spec.min_samples - 1) == 0


def test_published_models_need_400_samples():
    assert InputSpec().min_samples == 400


def test_moving_a_batch_leaves_the_counts_on_the_cpu_and_everything_else_as_it_was():
    batch = a_batch(global_step=7, micro_batch=1, num_micro_batches=3, num_utterances_in_step=11)
    moved = batch.to("meta")
    assert {getattr(moved, name).device.type for name in DEVICE_TENSORS} == {"meta"}
    assert all(getattr(moved, name).tolist() == getattr(batch, name).tolist() for name in COUNTS)
    assert (moved.ids, moved.texts) == (batch.ids, batch.texts)
    assert (moved.global_step, moved.micro_batch, moved.num_micro_batches, moved.num_utterances_in_step) == (
        7,
        1,
        3,
        11,
    )
    assert batch.waveforms_BT.device.type == "cpu"


def test_batch_without_masks_moves_without_them():
    moved = a_batch(time_mask_BF=None, channel_mask_BC=None).to("meta")
    assert moved.waveforms_BT.device.type == "meta"
    assert moved.time_mask_BF is None
    assert moved.channel_mask_BC is None


@pytest.mark.gpu
def test_pinned_batch_is_pinned_where_it_goes_to_the_device():
    pinned = a_batch().pin_memory()
    assert all(getattr(pinned, name).is_pinned() for name in DEVICE_TENSORS)
    assert not any(getattr(pinned, name).is_pinned() for name in COUNTS)
    assert pinned.ids == ["a", "b"]


def test_audio_seconds_leave_padding_out():
    assert a_batch().audio_seconds == 1.5
    assert len(a_batch()) == 2


def test_last_micro_batch_of_a_step_knows_it():
    assert [a_batch(micro_batch=i, num_micro_batches=3).is_last_of_step for i in range(3)] == [False, False, True]


def test_pad_puts_zeros_behind_and_keeps_the_type():
    padded = pad([np.array([1, 2, 3]), np.array([], dtype=np.int64), np.array([4])])
    assert padded.tolist() == [[1, 2, 3], [0, 0, 0], [4, 0, 0]]
    masks = pad([np.array([True]), np.array([True, True])], length=4)
    assert masks.tolist() == [[True, False, False, False], [True, True, False, False]]
    assert masks.dtype == torch.bool


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
@pytest.mark.parametrize(
    "waveform_T", [spell("FACE"), np.full(1000, 0.3, dtype=np.float32), np.zeros(1000, dtype=np.float32)]
)
def test_the_model_hears_what_transformers_feature_extractor_makes(waveform_T, dtype):
    samples = waveform_T if dtype == np.float32 else np.round(waveform_T * 2**15).astype(dtype)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    expected = extractor(waveform_T, sampling_rate=16_000, return_tensors="np").input_values[0]
    num_samples_B = torch.tensor([len(samples), 500])
    batch = a_batch(waveforms_BT=pad([samples, samples[:500]]), num_samples_B=num_samples_B, normalise=True)
    input_BT = batch.input_values()
    assert input_BT.dtype == torch.float32
    np.testing.assert_allclose(input_BT[0], expected, atol=1e-5 if dtype == np.float32 else 2e-3)
    assert not input_BT[1, 500:].any()


def test_without_normalisation_the_model_hears_the_recorded_level():
    batch = a_batch(waveforms_BT=torch.tensor([[2**14, -(2**15)]], dtype=torch.int16))
    assert batch.input_values().tolist() == [[0.5, -1.0]]
