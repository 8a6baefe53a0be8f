//! How the values of a panel rest off the device: packed rows of a narrower format, little endian, without padding. On the
//! device a value is f32 and was rounded to its format there, so nothing is rounded here: what comes back is the bits that
//! went. It must never know what a value means, nor where its bytes are kept.
//!
//! Every pass over a model moves all of its values through here, so both directions run in parallel over rows, in chunks
//! that depend on nothing but the shape, and their loops are ones that the compiler turns into vectors.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};
use serde::{Deserialize, Serialize};

use crate::program::quantize::{self, Table};

/// Values that one task converts: enough to pay for its start, and small enough to share out one panel.
const CHUNK_VALUES: usize = 1 << 17;

/// What a value takes off the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Four bytes: as on the device.
    F32,
    /// Two bytes: the upper half of an f32, whose lower half is zero.
    Bf16,
    /// One byte, a code of values of either sign, and four for each block of 256 columns: its scale. A row is its codes and
    /// then its scales, so rows follow each other.
    Q8Signed,
    /// The same of values that are not negative.
    Q8Unsigned,
}

impl Format {
    /// Bytes of a row of `cols` values.
    pub fn row_bytes(self, cols: usize) -> usize {
        match self {
            Format::F32 => cols * 4,
            Format::Bf16 => cols * 2,
            Format::Q8Signed | Format::Q8Unsigned => cols + quantize::blocks(cols) * 4,
        }
    }

    /// Bytes of `rows x cols` values, packed: rows follow each other without padding.
    pub fn bytes(self, rows: usize, cols: usize) -> usize {
        rows * self.row_bytes(cols)
    }

    /// Packs rows that lie `stride` values apart. What stands in the padding is dropped.
    ///
    /// # Panics
    /// When `values` are not `rows * stride`, or `out` is not [`Format::bytes`]; in debug builds also where a value is not
    /// one of the format.
    pub fn encode(self, values: &[f32], rows: usize, cols: usize, stride: usize, out: &mut [u8]) {
        self.expect(values.len(), out.len(), (rows, cols, stride));
        if out.is_empty() {
            return;
        }
        let (row_bytes, chunk) = (self.row_bytes(cols), chunk_rows(stride));
        let chunks = out.par_chunks_mut(chunk * row_bytes).zip(values.par_chunks(chunk * stride));
        chunks.for_each(|(out, values)| {
            for (out, row) in out.chunks_exact_mut(row_bytes).zip(values.chunks_exact(stride)) {
                self.encode_row(&row[..cols], out);
            }
        });
    }

    /// Unpacks what [`Format::encode`] packed, bit for bit. The padding becomes zero.
    ///
    /// # Panics
    /// When `bytes` is not [`Format::bytes`], or `out` is not `rows * stride`.
    pub fn decode(self, bytes: &[u8], rows: usize, cols: usize, stride: usize, out: &mut [f32]) {
        self.expect(out.len(), bytes.len(), (rows, cols, stride));
        if bytes.is_empty() {
            return out.fill(0.0);
        }
        let (row_bytes, chunk) = (self.row_bytes(cols), chunk_rows(stride));
        let chunks = out.par_chunks_mut(chunk * stride).zip(bytes.par_chunks(chunk * row_bytes));
        chunks.for_each(|(out, bytes)| {
            for (row, bytes) in out.chunks_exact_mut(stride).zip(bytes.chunks_exact(row_bytes)) {
                let (values, padding) = row.split_at_mut(cols);
                self.decode_row(bytes, values);
                padding.fill(0.0);
            }
        });
    }

    fn expect(self, values: usize, bytes: usize, (rows, cols, stride): (usize, usize, usize)) {
        assert!(stride >= cols, "rows of {cols} at a stride of {stride}");
        assert_eq!(values, rows * stride, "values of {rows} rows at a stride of {stride}");
        assert_eq!(bytes, self.bytes(rows, cols), "bytes of {rows} x {cols} in {self:?}");
    }

    fn encode_row(self, row: &[f32], out: &mut [u8]) {
        match self {
            Format::F32 => {
                for (out, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(row) {
                    *out = value.to_le_bytes();
                }
            }
            Format::Bf16 => {
                for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(row) {
                    debug_assert!(value.to_bits() & 0xffff == 0, "{value} was not rounded to bf16");
                    *out = ((value.to_bits() >> 16) as u16).to_le_bytes();
                }
            }
            Format::Q8Signed => quantize_row(Table::Signed, row, out),
            Format::Q8Unsigned => quantize_row(Table::Unsigned, row, out),
        }
    }

    fn decode_row(self, bytes: &[u8], row: &mut [f32]) {
        match self {
            Format::F32 => {
                for (value, bytes) in row.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Format::Bf16 => {
                for (value, bytes) in row.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
            Format::Q8Signed => restore_row(Table::Signed, bytes, row),
            Format::Q8Unsigned => restore_row(Table::Unsigned, bytes, row),
        }
    }
}

/// A row's codes, and then its scales.
fn quantize_row(table: Table, row: &[f32], out: &mut [u8]) {
    let (codes, scale_bytes) = out.split_at_mut(row.len());
    let mut scales = vec![0.0; quantize::blocks(row.len())];
    quantize::encode_row(table, row, codes, &mut scales);
    for (out, scale) in scale_bytes.as_chunks_mut::<4>().0.iter_mut().zip(scales) {
        *out = scale.to_le_bytes();
    }
}

/// The values of what [`quantize_row`] made.
fn restore_row(table: Table, bytes: &[u8], row: &mut [f32]) {
    let (codes, scale_bytes) = bytes.split_at(row.len());
    let scales: Vec<f32> = scale_bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    quantize::decode_row(table, codes, &scales, row);
}

/// Rows of a chunk: a function of the shape alone.
fn chunk_rows(stride: usize) -> usize {
    (CHUNK_VALUES / stride).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMATS: [Format; 2] = [Format::F32, Format::Bf16];

    /// Any bits at all that the format holds, NaN and negative zero among them.
    fn value(format: Format, row: usize, col: usize, seed: u32) -> u32 {
        let bits = (row as u32).wrapping_mul(0x9e37_79b9).wrapping_add(col as u32).wrapping_mul(0x85eb_ca6b) ^ seed;
        if format == Format::Bf16 { bits & 0xffff_0000 } else { bits }
    }

    fn returns(format: Format, rows: usize, cols: usize, stride: usize, seed: u32) {
        let poison = f32::from_bits(0x7fc0_dead);
        let mut values = vec![poison; rows * stride];
        for (row, values) in values.chunks_exact_mut(stride).enumerate() {
            values[..cols].iter_mut().enumerate().for_each(|(c, v)| *v = f32::from_bits(value(format, row, c, seed)));
        }
        let mut bytes = vec![0xaa; format.bytes(rows, cols)];
        format.encode(&values, rows, cols, stride, &mut bytes);
        let mut back = vec![poison; rows * stride];
        format.decode(&bytes, rows, cols, stride, &mut back);
        for (row, values) in back.chunks_exact(stride).enumerate() {
            for (col, found) in values.iter().enumerate() {
                let wanted = if col < cols { value(format, row, col, seed) } else { 0 };
                assert_eq!(found.to_bits(), wanted, "{format:?} {rows} x {cols} at {stride}: row {row}, column {col}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_bit_comes_back(rows in 0usize..40, cols in 1usize..600, pad in 0usize..9, seed: u32) {
            FORMATS.iter().for_each(|&format| returns(format, rows, cols, cols + pad, seed));
        }
    }

    #[test]
    fn every_bit_comes_back_over_many_chunks() {
        for format in FORMATS {
            returns(format, 1025, 1600, 1600, 7);
            returns(format, 3, 200_001, 200_008, 8);
        }
    }

    /// What is on a grid comes back; the grids themselves are the business of the program.
    #[test]
    fn what_was_quantised_comes_back() {
        for (format, table) in [(Format::Q8Signed, Table::Signed), (Format::Q8Unsigned, Table::Unsigned)] {
            for (rows, cols, stride) in [(1, 1, 8), (3, 255, 256), (5, 257, 264), (130, 1600, 1600), (700, 513, 520)] {
                let grid = table.values();
                let scale = |row: usize, col: usize| (1 + row % 7) as f32 * 0.125 * (1 + col / 256) as f32;
                // The first of each block is its largest, so that its scale is what it is here.
                let code =
                    |row: usize, col: usize| if col.is_multiple_of(256) { 255 } else { (row * 31 + col * 7) % 256 };
                let value = |row, col| grid[code(row, col)] * scale(row, col);
                let mut values = vec![9.0; rows * stride];
                for (row, values) in values.chunks_exact_mut(stride).enumerate() {
                    values[..cols].iter_mut().enumerate().for_each(|(col, v)| *v = value(row, col));
                }
                let mut bytes = vec![0xaa; format.bytes(rows, cols)];
                assert_eq!(bytes.len(), rows * (cols + cols.div_ceil(256) * 4));
                format.encode(&values, rows, cols, stride, &mut bytes);
                let mut back = vec![9.0; rows * stride];
                format.decode(&bytes, rows, cols, stride, &mut back);
                for (row, values) in back.chunks_exact(stride).enumerate() {
                    for (col, found) in values.iter().enumerate() {
                        let wanted = if col < cols { value(row, col) } else { 0.0 };
                        assert_eq!(found.to_bits(), wanted.to_bits(), "{format:?} {rows} x {cols}: {row}, {col}");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_are_little_endian_and_follow_each_other() {
        let values = [1.0, -2.0, 9.0, 0.5, f32::INFINITY, 9.0];
        let mut bytes = [0; 8];
        Format::Bf16.encode(&values, 2, 2, 3, &mut bytes);
        assert_eq!(bytes, [0x80, 0x3f, 0x00, 0xc0, 0x00, 0x3f, 0x80, 0x7f]);
        let mut bytes = [0; 16];
        Format::F32.encode(&values, 2, 2, 3, &mut bytes);
        assert_eq!(bytes[..8], [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]);
    }
}
