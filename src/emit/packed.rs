//! Elements of less than a byte as ONNX files hold them: several to a byte, low bits first.

use std::io::{self, Write};

/// Packs elements that have a byte each. The last byte may have room left, which is zero.
pub(super) fn pack(bits: usize, elements: &[u8], out: &mut Vec<u8>) {
    let mask = 0xffu8 >> (8 - bits);
    out.extend(elements.chunks(8 / bits).map(|c| c.iter().rev().fold(0, |byte, e| (byte << bits) | (e & mask))));
}

/// Packs what is written to it; `finish` writes the last byte.
pub(super) struct Packer<'w> {
    bits: usize,
    out: &'w mut dyn Write,
    /// Elements that do not fill a byte yet.
    rest: Vec<u8>,
}

impl<'w> Packer<'w> {
    pub(super) fn new(bits: usize, out: &'w mut dyn Write) -> Packer<'w> {
        Packer { bits, out, rest: vec![] }
    }

    pub(super) fn finish(self) -> io::Result<()> {
        let mut last = vec![];
        pack(self.bits, &self.rest, &mut last);
        self.out.write_all(&last)
    }
}

impl Write for Packer<'_> {
    fn write(&mut self, elements: &[u8]) -> io::Result<usize> {
        let per_byte = 8 / self.bits;
        let mut packed = vec![];
        let mut left = elements;
        if !self.rest.is_empty() {
            let (fill, behind) = left.split_at(left.len().min(per_byte - self.rest.len()));
            self.rest.extend_from_slice(fill);
            left = behind;
            if self.rest.len() == per_byte {
                pack(self.bits, &self.rest, &mut packed);
                self.rest.clear();
            }
        }
        let (whole, behind) = left.split_at(left.len() / per_byte * per_byte);
        pack(self.bits, whole, &mut packed);
        self.rest.extend_from_slice(behind);
        self.out.write_all(&packed)?;
        Ok(elements.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_share_bytes_low_bits_first() {
        for (bits, elements, expected) in [
            (4, &[1u8, 2, 3][..], &[0x21u8, 0x03][..]),
            (4, &[0xff, 0x08], &[0x8f]),
            (2, &[1, 2, 3, 0, 0xfe], &[0b0011_1001, 2]),
            (4, &[], &[]),
        ] {
            let mut whole = vec![];
            pack(bits, elements, &mut whole);
            assert_eq!(whole, expected);
            // In pieces of any size the same.
            for piece in 1..4 {
                let mut out = vec![];
                let mut p = Packer::new(bits, &mut out);
                elements.chunks(piece).for_each(|c| p.write_all(c).unwrap());
                p.finish().unwrap();
                assert_eq!(out, expected, "{piece}");
            }
        }
    }
}
