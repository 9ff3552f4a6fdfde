import torch

from qsam2_ao.quantizers.sampling import CalibrationSample, even_sample


def test_a_sample_does_not_keep_its_activation_alive():
    x = torch.randn(64, 4096)
    sample = even_sample(x)
    assert sample.untyped_storage().nbytes() == sample.numel() * 4
    assert sample.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_a_sample_is_spread_evenly_and_float32():
    x = torch.arange(1 << 17, dtype=torch.float64)
    sample = even_sample(x)
    assert sample.dtype == torch.float32
    assert sample[0] == 0
    assert len(set(sample.diff().tolist())) == 1


def test_statistics_are_exact_however_small_the_sample():
    collected = CalibrationSample()
    parts = [torch.randn(3, 50_000) * k for k in (1.0, 3.0)]
    for part in parts:
        collected.add(part)
    collected.add(torch.empty(0))
    everything = torch.cat([part.flatten() for part in parts]).double()
    stats = collected.statistics()
    torch.testing.assert_close(stats.mean.double().squeeze(), everything.mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats.std.double().squeeze(), everything.std(correction=0), rtol=1e-5, atol=0)
    assert stats.low == everything.min().float()
    assert stats.high == everything.max().float()


def test_all_calls_are_in_the_sample_alike():
    collected = CalibrationSample()
    for number in range(60):
        collected.add(torch.full((20_000,), float(number)))
    _, counts = collected.sample().unique(return_counts=True)
    assert len(counts) == 60
    assert counts.max() <= counts.min() + 1
    assert sum(sample.untyped_storage().nbytes() for sample in collected.samples) <= 4 << 18
    again = CalibrationSample()
    again.go_on(collected.progress(), torch.device("cpu"))
    for one in (again, collected):
        one.add(torch.full((20_000,), 60.0))
    assert torch.equal(again.sample(), collected.sample())
