//! The small cases of all kernels on a GPU, where there is one. `SINTER_REQUIRE_GPU=1` makes its absence a failure.

use std::io::Write as _;
use std::sync::Arc;

use sinter_runtime::cuda::Device;
use sinter_runtime::cuda::check::{Harness, Size, cases};

#[test]
fn kernels_agree_on_a_gpu() {
    // Ranks on one device need a queue each.
    // SAFETY: this is the only test of the process, so that no other thread reads the environment.
    unsafe { std::env::set_var("CUDA_DEVICE_MAX_CONNECTIONS", "32") };
    let device = match Device::open(0) {
        Ok(device) => Arc::new(device),
        Err(e) => {
            assert!(std::env::var_os("SINTER_REQUIRE_GPU").is_none(), "{e}");
            // The output of a passing test is not shown, what it writes itself is.
            let _ = writeln!(std::io::stderr(), "skipped on this machine: {e}");
            return;
        }
    };
    let harness = Harness::new(&device).unwrap();
    let failed: Vec<String> = cases()
        .iter()
        .filter(|c| c.size == Size::Small)
        .filter_map(|c| c.run(&harness).err().map(|e| format!("{} {}: {e}", c.kernel, c.label)))
        .collect();
    assert!(failed.is_empty(), "{} cases:\n{}", failed.len(), failed.join("\n"));
}
