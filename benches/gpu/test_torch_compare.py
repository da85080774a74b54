"""Tests of the functions of torch_compare.py that need neither PyTorch nor a GPU."""

import unittest

import torch_compare as tc


def row(kernel, label, us, nbytes=1000):
    return {"kernel": kernel, "label": label, "us": us, "bytes": nbytes, "bytes_per_s": 0.0, "of_copy": 0.0}


def report(*rows, copy=1e9):
    return {"device": "NVIDIA H200", "capability": 90, "driver": "13.0", "nvrtc": "13.0", "copy_bytes_per_s": copy,
            "benchmarks": list(rows)}


def results(merged):
    return {t["target"]: t["result"] for t in merged["targets"]}


class TorchCompare(unittest.TestCase):
    def test_labels(self):
        self.assertEqual(tc.shape_of("bf16[4096, 8192]"), (4096, 8192))
        self.assertEqual(tc.shape_of("bf16 4096x14336"), (4096, 14336))
        for label in ("f32[4, 8]", "bf16[2, 3, 4]", "bf16 4096 tokens of 8192", ""):
            self.assertIsNone(tc.shape_of(label))
        self.assertTrue(tc.comparable("add_rms_norm_quant_fp8_token", "bf16[1, 8]"))
        self.assertFalse(tc.comparable("add_rms_norm_quant_nvfp4", "bf16[1, 8]"))
        self.assertFalse(tc.comparable("gather", "bf16[1, 8]"))
        self.assertEqual(tc.file_name("NVIDIA H200", "2026-01-02"), "h200-2026-01-02")

    def test_passes_are_merged(self):
        label = "bf16[4096, 8192]"
        reports = [report(row("add_rms_norm", label, us), copy=c) for us, c in ((3.0, 1e9), (1.0, 3e9), (2.0, 2e9))]
        merged = tc.merge(reports, {("add_rms_norm", label): {"eager": [9.0, 7.0, 8.0], "triton": [4.0, 4.0, 4.0]}})
        got = merged["benchmarks"][0]
        self.assertEqual((got["us"], got["least"], got["most"], merged["copy_bytes_per_s"]), (2.0, 1.0, 3.0, 2e9))
        self.assertAlmostEqual(got["of_copy"], 1000 / 2e-6 / 2e9)
        self.assertEqual(got["peers"]["eager"], {"us": 8.0, "least": 7.0, "most": 9.0})
        self.assertEqual(tc.best(got), ("triton", 4.0))
        self.assertIsNone(tc.best(got, ("compile",)))

    def test_targets_are_judged(self):
        rows = [row("add_rms_norm", "bf16[4096, 8192]", 1.04), row("add_then_rms_norm", "bf16[4096, 8192]", 1.5),
                row("add_rms_norm", "bf16[16384, 8192]", 1.2), row("add_then_rms_norm", "bf16[16384, 8192]", 1.3),
                row("add_rms_norm", "bf16[1, 8192]", 2.0), row("add_rms_norm_quant_fp8", "bf16[4096, 8192]", 1.2),
                row("ar_residual_rms_norm", "bf16[64, 8192], 2 ranks", 2.0),
                row("all_reduce_then_add_then_rms_norm", "bf16[64, 8192], 2 ranks", 3.0)]
        peers = {("add_rms_norm", "bf16[4096, 8192]"): {"compile": [1.1], "triton": [1.03], "eager": [1.0]},
                 ("add_rms_norm", "bf16[1, 8192]"): {"eager": [2.5]}}
        got = results(tc.merge([report(*rows)], peers))
        find = lambda *parts: [r for t, r in got.items() if all(p in t for p in parts)]
        self.assertEqual(find("add_rms_norm 4096x8192", "95 %"), ["met"])
        self.assertEqual(find("16384x8192", "95 %"), ["not met"])
        self.assertEqual(find("add_rms_norm 4096x8192", "torch.compile"), ["not met"])
        self.assertEqual(find("16384x8192", "torch.compile"), ["not measured"])
        self.assertEqual(find("1x8192", "few tokens"), ["met"])
        self.assertEqual(find("add_rms_norm 4096x8192", "24 %"), ["met"])
        self.assertEqual(find("16384x8192", "24 %"), ["not met"])
        self.assertEqual(find("quant_fp8", "10 %"), ["not met"])
        self.assertEqual(find("2 ranks", "apart"), ["met"])

    def test_nothing_measured_is_said(self):
        got = results(tc.merge([report()], {}))
        self.assertTrue(got)
        self.assertEqual(set(got.values()), {"not measured"})

    def test_table(self):
        merged = tc.merge([report(row("add_rms_norm", "bf16[1, 8192]", 2.0))],
                          {("add_rms_norm", "bf16[1, 8192]"): {"eager": [3.0]}})
        merged |= {"date": "2026-01-02", "passes": 1, "torch": "2", "triton": "3", "failed_peers": ["softmax by triton: no"]}
        text = tc.markdown(merged)
        self.assertIn("| `add_rms_norm` | bf16[1, 8192] | 2.00 (2.00 to 2.00) |", text)
        self.assertIn("| 1.50 (eager) |", text)
        self.assertIn("Not timed: softmax by triton: no", text)


if __name__ == "__main__":
    unittest.main()
