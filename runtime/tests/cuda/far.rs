//! Tensors of more than 2^31 elements: only the last blocks run, and only the last elements are touched.

use sinter_runtime::cuda::check::Harness;
use sinter_runtime::cuda::{DeviceBuffer, Launch, View, copy, elementwise, gather, rotary, softmax};
use sinter_runtime::dtype::DType;
use sinter_runtime::op::Op;

use crate::emulator::{device, with_blocks};

/// Rows and columns; the product is beyond 2^31.
const ROWS: usize = (1 << 23) + 1;
const COLUMNS: usize = 256;

/// Where the last bytes of a buffer lie, which is the host's memory on the emulated device.
fn end(b: &DeviceBuffer, n: usize) -> *mut u8 {
    assert!(n <= b.len());
    (b.address() as usize + b.len() - n) as *mut u8
}

/// The last bytes of a buffer.
fn last(b: &DeviceBuffer, n: usize) -> Vec<u8> {
    // SAFETY: the range is the end of a live allocation, and no launch runs.
    unsafe { std::slice::from_raw_parts(end(b, n), n) }.to_vec()
}

/// Sets the last bytes of a buffer.
fn set_last(b: &DeviceBuffer, bytes: &[u8]) {
    // SAFETY: as above.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), end(b, bytes.len()), bytes.len()) }
}

fn alloc(bytes: usize) -> DeviceBuffer {
    device().alloc(bytes).unwrap()
}

/// Runs the last `blocks` blocks.
fn run_end(launch: &Launch, blocks: u32) {
    let harness = Harness::new(device()).unwrap();
    with_blocks(launch.grid - blocks, blocks, || harness.run(launch)).unwrap();
}

/// The launch's last rows and a column vector, so that more axes than one are walked.
#[test]
fn a_chain_reaches_the_end() {
    let (shape, column) = ([ROWS, COLUMNS], [ROWS, 1]);
    let (x, c, y) = (alloc(ROWS * COLUMNS), alloc(ROWS), alloc(ROWS * COLUMNS));
    set_last(&x, &(0..512).map(|i| (i * 7) as u8).collect::<Vec<_>>());
    set_last(&c, &[100, 200]);
    let view = |b: &DeviceBuffer, shape| -> View<'_> {
        View { address: b.address(), dtype: DType::U8, shape, bytes: b.len() }
    };
    let operands = [view(&x, &shape), view(&c, &column)];
    let launch = elementwise::operator(&Op::Max {}, &operands, &view(&y, &shape), device().info()).unwrap();
    assert!(launch.kernel.name.ends_with("_x16"));
    run_end(&launch, 2);
    let want: Vec<u8> = (0..512).map(|i| ((i * 7) as u8).max([100, 200][i / 256])).collect();
    assert_eq!(last(&y, 512), want);
}

#[test]
fn copies_reach_the_end() {
    let (x, y) = (alloc(ROWS * COLUMNS), alloc(ROWS * COLUMNS));
    set_last(&x, &(0..512).map(|i| (i * 3 + i / 256) as u8).collect::<Vec<_>>());
    let (whole, turned, end, part) = ([ROWS, COLUMNS], [COLUMNS, ROWS], [2, COLUMNS], [1, ROWS, COLUMNS]);
    let v = |b: &DeviceBuffer, shape| -> View<'_> {
        View { address: b.address(), dtype: DType::U8, shape, bytes: b.len() }
    };
    let info = device().info();
    // All of it, by words of 16 bytes.
    run_end(&copy::reshape(&v(&x, &whole), &v(&y, &part), info).unwrap(), 2);
    assert_eq!(last(&y, 512), last(&x, 512));
    // Its last two rows.
    let small = alloc(512);
    let rows = (ROWS as i64 - 2, i64::MAX, 1);
    let cut = copy::slice(&v(&x, &whole), 0, rows, &v(&small, &end), info).unwrap();
    run_end(&cut, cut.grid);
    assert_eq!(last(&small, 512), last(&x, 512));
    // Turned by tiles of single bytes: the last tile has the last rows of the last columns.
    let launch = copy::transpose(&v(&x, &whole), &[1, 0], &v(&y, &turned), info).unwrap();
    assert_eq!(launch.kernel.name, "transpose_tiles_8_1");
    run_end(&launch, 1);
    for column in 224..256 {
        let at = ROWS * (255 - column) + 1;
        let (got, from) = (last(&y, at)[0], last(&x, 512)[256 + column]);
        assert_eq!(got, from, "column {column}");
    }
}

#[test]
fn a_gather_reaches_the_end() {
    let (shape, n, out, none) = ([ROWS, COLUMNS], [ROWS], [ROWS, COLUMNS], []);
    let (x, ids, y, status) = (alloc(ROWS * COLUMNS), alloc(ROWS * 4), alloc(ROWS * COLUMNS), alloc(8));
    set_last(&x, &(0..=255).collect::<Vec<u8>>());
    // The block has parts of 16 entries and more: all name the last one.
    set_last(&ids, &(ROWS as i32 - 1).to_le_bytes().repeat(1024));
    set_last(&status, &[0xff; 8]);
    let v =
        |b: &DeviceBuffer, dtype, shape| -> View<'_> { View { address: b.address(), dtype, shape, bytes: b.len() } };
    let (data, at, word) = (v(&x, DType::U8, &shape), v(&ids, DType::I32, &n), v(&status, DType::U64, &none));
    run_end(&gather::gather(&data, &at, 0, &word, &v(&y, DType::U8, &out), device().info()).unwrap(), 1);
    assert_eq!(last(&y, 256), (0..=255).collect::<Vec<u8>>());
    assert_eq!(last(&status, 8), [0xff; 8]);
}

#[test]
fn float_kernels_reach_the_end() {
    let (shape, angles) = ([ROWS, COLUMNS], [128usize]);
    let (x, y) = (alloc(2 * ROWS * COLUMNS), alloc(2 * ROWS * COLUMNS));
    let (cos, sin) = (alloc(4 * 128), alloc(4 * 128));
    let one = half::f16::ONE.to_le_bytes();
    set_last(&x, &one.repeat(256 * 64));
    set_last(&cos, &2.0f32.to_le_bytes().repeat(128));
    set_last(&sin, &0.5f32.to_le_bytes().repeat(128));
    let v =
        |b: &DeviceBuffer, dtype, shape| -> View<'_> { View { address: b.address(), dtype, shape, bytes: b.len() } };
    let (f16, f32, info) = (DType::F16, DType::F32, device().info());
    let operands = (&v(&x, f16, &shape), &v(&cos, f32, &angles), &v(&sin, f32, &angles));
    run_end(&rotary::rotary(operands, false, 256, &v(&y, f16, &shape), info).unwrap(), 1);
    let values = |n: usize| -> Vec<f32> {
        last(&y, 2 * n).chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
    };
    assert_eq!(values(256)[..128], [1.5; 128]);
    assert_eq!(values(256)[128..], [2.5; 128]);
    run_end(&softmax::softmax(&v(&x, f16, &shape), 1, false, &v(&y, f16, &shape), info).unwrap(), 1);
    assert_eq!(values(256), [1.0 / 256.0; 256]);
    // Columns: the last block has the end of every row of the last slab.
    let slabs = [ROWS / 3, 3, COLUMNS];
    let (a, b) = (v(&x, f16, &slabs), v(&y, f16, &slabs));
    run_end(&softmax::softmax(&a, 1, false, &b, info).unwrap(), 1);
    assert_eq!(values(64), [half::f16::from_f32(1.0 / 3.0).to_f32(); 64]);
}
