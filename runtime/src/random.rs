//! Weights whose data is made up: for models whose data is absent, so that they can be compiled, run and timed.
//!
//! An element depends on the seed, the weight's name and the element's position in the whole weight alone. So every
//! rank makes its own part, in any order, and the ranks of any mapping hold parts of the same weights.

use serde::{Deserialize, Serialize};

use crate::dtype::{DType, push_element};
use crate::tensor::byte_len;

/// A weight without data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomWeight {
    /// What makes the numbers of one run differ from those of another.
    pub seed: u64,
    /// The weight's name in the model.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents of the whole weight.
    pub shape: Vec<usize>,
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl RandomWeight {
    /// A weight of a type whose numbers can be made up; the error says why they cannot.
    pub fn new(seed: u64, name: &str, dtype: DType, shape: &[usize]) -> Result<RandomWeight, String> {
        let w = RandomWeight { seed, name: name.to_owned(), dtype, shape: shape.to_vec() };
        w.check()?;
        Ok(w)
    }

    /// Whether elements of the type can be made up, and how many there are can be told.
    pub fn check(&self) -> Result<(), String> {
        if !self.dtype.is_float() && self.dtype.size() != 1 || self.dtype == DType::Bool {
            return Err(format!("data of type {} cannot be made up", self.dtype));
        }
        byte_len(self.dtype, &self.shape).map(|_| ()).ok_or_else(|| format!("{:?} is too large", self.shape))
    }

    /// Middle and half width of the range of the elements.
    ///
    /// Matrices: 0 and 1 / sqrt(n) for the smaller n of the last two extents, which may be the width of the operand
    /// under either layout, so that products neither grow nor vanish. Vectors, such as the weights of norms: 1 and
    /// 0.1. Bytes: all values.
    fn range(&self) -> (f64, f64) {
        match &self.shape[..] {
            _ if !self.dtype.is_float() => (0.0, 128.0),
            [.., a, b] => (0.0, 1.0 / ((*a.min(b)).max(1) as f64).sqrt()),
            _ => (1.0, 0.1),
        }
    }

    /// Writes the elements from `first` on, as many as `out` has room for; little-endian.
    pub fn fill(&self, first: usize, out: &mut [u8]) {
        let name =
            self.name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let start = mix(self.seed ^ mix(name));
        let (middle, half) = self.range();
        let mut element = Vec::with_capacity(8);
        for (i, out) in out.chunks_exact_mut(self.dtype.size()).enumerate() {
            let bits = mix(start.wrapping_add(((first + i) as u64).wrapping_mul(GOLDEN)));
            // 53 bits in [-1, 1).
            let unit = (bits >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
            let value = middle + half * unit;
            element.clear();
            push_element(self.dtype, value, value.floor() as i64, &mut element);
            out.copy_from_slice(&element);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::element_f64;

    fn weight(name: &str, dtype: DType, shape: &[usize]) -> RandomWeight {
        RandomWeight::new(7, name, dtype, shape).unwrap()
    }

    fn values(w: &RandomWeight, first: usize, n: usize) -> Vec<f64> {
        let mut out = vec![0; n * w.dtype.size()];
        w.fill(first, &mut out);
        out.chunks(w.dtype.size()).map(|b| element_f64(w.dtype, b)).collect()
    }

    #[test]
    fn an_element_depends_on_its_place_alone() {
        let w = weight("w", DType::F32, &[64, 64]);
        let all = values(&w, 0, 4096);
        assert_eq!(values(&w, 1000, 17), all[1000..1017]);
        assert_ne!(values(&weight("v", DType::F32, &[64, 64]), 0, 16), all[..16]);
        assert_ne!(values(&RandomWeight { seed: 8, ..w }, 0, 16), all[..16]);
    }

    #[test]
    fn elements_are_spread_over_their_range() {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let all = values(&weight("w", dtype, &[256, 64]), 0, 256 * 64);
            let (low, high) = all.iter().fold((0.0f64, 0.0f64), |(l, h), v| (l.min(*v), h.max(*v)));
            assert!((-0.1251..-0.12).contains(&low) && (0.12..0.1251).contains(&high), "{dtype} {low} {high}");
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            let variance = all.iter().map(|v| v * v).sum::<f64>() / all.len() as f64;
            assert!(mean.abs() < 0.002 && (variance * 64.0 - 1.0 / 3.0).abs() < 0.01, "{dtype} {mean} {variance}");
            let norm = values(&weight("n", dtype, &[64]), 0, 64);
            assert!(norm.iter().all(|v| (0.89..1.11).contains(v)), "{dtype} {norm:?}");
        }
        let bytes = values(&weight("q", DType::I8, &[64, 64]), 0, 4096);
        assert!(bytes.contains(&-128.0) && bytes.contains(&127.0));
        assert!(values(&weight("q", DType::U8, &[64, 64]), 0, 4096).contains(&255.0));
        assert!(RandomWeight::new(0, "i", DType::I64, &[4]).unwrap_err().contains("i64"));
    }
}
