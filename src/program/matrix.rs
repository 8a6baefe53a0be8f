//! A matrix on a device: rows of floats at an explicit stride. What every program takes; knows no tensor names.

use crate::device::{Buffer, Device, DeviceError, Elem, Result, View};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

/// `rows x cols` floats in a view, row-major, rows `stride` elements apart, padding columns zero.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// The memory that is bound; element (r, c) is element `offset + r * stride + c` of it.
    pub view: View,
    /// Elements before the first one, inside the view: a column slice of a wider matrix starts here.
    pub offset: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Elements from one row to the next: a multiple of 8.
    pub stride: usize,
}

impl Matrix {
    /// The row stride of a matrix with `cols` columns: the next multiple of 8.
    pub fn stride_for(cols: usize) -> usize {
        cols.next_multiple_of(8)
    }

    /// A new matrix of zeros.
    ///
    /// # Errors
    /// As [`Device::buffer`].
    pub fn new(device: &Device, label: impl Into<String>, rows: usize, cols: usize) -> Result<Matrix> {
        let buffer = device.buffer(label, Elem::F32, rows * Self::stride_for(cols))?;
        Ok(Matrix::over(&buffer, rows, cols))
    }

    /// The matrix at the start of a buffer that may be larger (a slot, a workspace).
    pub fn over(buffer: &Buffer, rows: usize, cols: usize) -> Matrix {
        let stride = Self::stride_for(cols);
        Matrix { view: buffer.view(0, rows * stride), offset: 0, rows, cols, stride }
    }

    /// Rows `first .. first + rows`. The view starts at the row, so on an adapter `first * stride` must be a multiple of
    /// the view alignment; where it is not, the rows are addressed by offset in the same view.
    ///
    /// # Panics
    /// When there are no such rows.
    pub fn rows(&self, first: usize, rows: usize) -> Matrix {
        assert!(first + rows <= self.rows, "rows {first}+{rows} of {self:?}");
        Matrix { offset: self.offset + first * self.stride, rows, ..self.clone() }
    }

    /// Columns `first .. first + cols`, addressed by offset in the same view.
    ///
    /// # Panics
    /// When there are no such columns.
    pub fn columns(&self, first: usize, cols: usize) -> Matrix {
        assert!(first + cols <= self.cols, "columns {first}+{cols} of {self:?}");
        Matrix { offset: self.offset + first, cols, ..self.clone() }
    }

    /// Offset and row stride in vec4 elements, for programs that take whole rows: a row panel, not a column slice.
    ///
    /// # Errors
    /// [`DeviceError::Usage`] for a column slice, an offset that is no multiple of 4, or a panel that leaves its
    /// view or the range of `u32`.
    pub fn row_quads(&self) -> Result<(u32, u32)> {
        let end = self.offset + self.rows * self.stride;
        if !self.offset.is_multiple_of(4)
            || self.stride != Self::stride_for(self.cols)
            || end > self.view.len
            || end > u32::MAX as usize
        {
            return Err(DeviceError::Usage(format!("{self:?} is not a panel of whole rows aligned to 4 elements")));
        }
        Ok(((self.offset / 4) as u32, (self.stride / 4) as u32))
    }

    /// Uploads row-major values without padding.
    ///
    /// # Errors
    /// As [`Device::upload`].
    ///
    /// # Panics
    /// When there are not `rows * cols` values, or this is a slice.
    pub fn upload(&self, device: &Device, values: &[f32]) -> Result<()> {
        assert_eq!(values.len(), self.rows * self.cols, "values of {self:?}");
        assert_eq!(self.offset, 0, "upload into a slice");
        let mut padded = vec![0.0f32; self.view.len];
        for (to, from) in padded.chunks_mut(self.stride).zip(values.chunks(self.cols)) {
            to[..self.cols].copy_from_slice(from);
        }
        device.upload(&self.view, &padded)
    }

    /// Downloads row-major values without padding.
    ///
    /// # Errors
    /// As [`Device::download`].
    pub fn download(&self, device: &Device) -> Result<Vec<f32>> {
        Ok(self.dense(&device.download(&self.view)?))
    }

    /// The same at the precision the device keeps.
    ///
    /// # Errors
    /// As [`Device::download`].
    pub fn download_f64(&self, device: &Device) -> Result<Vec<f64>> {
        Ok(self.dense(&device.download_f64(&self.view)?))
    }

    fn dense<T: Copy>(&self, padded: &[T]) -> Vec<T> {
        (0..self.rows).flat_map(|r| &padded[self.offset + r * self.stride..][..self.cols]).copied().collect()
    }
}

impl Matrix {
    /// Quads (four floats) of a row that a program reads and writes: the padded row where the rows are whole, only the
    /// columns where this is a column slice, whose neighbours must stay as they are.
    ///
    /// # Panics
    /// When the matrix does not consist of whole quads: offset and stride must be multiples of 4, and so must the
    /// columns of a slice.
    pub(super) fn quads(&self) -> u32 {
        let whole = self.stride == Self::stride_for(self.cols);
        let width = if whole { self.stride } else { self.cols };
        assert!(
            [self.offset, self.stride, width].iter().all(|n| n.is_multiple_of(4)),
            "slice of {:?} by {} columns at element {} does not lie on multiples of 4",
            self.view,
            self.cols,
            self.offset
        );
        (width / 4) as u32
    }

    /// Offset of the first row and distance of two rows, both in quads.
    pub(super) fn place(&self) -> Place {
        ((self.offset / 4) as u32, (self.stride / 4) as u32)
    }

    /// # Panics
    /// When the other matrix is of another shape, or laid out so that its rows take another number of quads.
    pub(super) fn expect_like(&self, other: &Matrix) {
        assert!(
            (self.rows, self.cols, self.quads()) == (other.rows, other.cols, other.quads()),
            "{self:?} and {other:?} are not of one shape"
        );
    }
}

/// Where the rows of a matrix begin in a bound slice, in quads: offset of the first, distance of two.
pub(super) type Place = (u32, u32);

/// Rows of quads that a program goes through, wherever each of its matrices keeps them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// Number of rows.
    pub rows: u32,
    /// Quads of a row.
    pub quads: u32,
}

/// Floats of one piece where a program that takes each element alone goes through gapless matrices.
const PIECE: usize = 4096;

impl Rows {
    /// The rows of matrices of one shape.
    pub fn of(all: &[&Matrix]) -> Rows {
        all.iter().for_each(|m| all[0].expect_like(m));
        Rows { rows: all[0].rows as u32, quads: all[0].quads() }
    }

    /// The same for a program that takes each element alone: one long row where the matrices lie without gaps.
    pub fn flat(all: &[&Matrix]) -> Rows {
        let Rows { rows, quads } = Rows::of(all);
        if all.iter().all(|m| m.stride / 4 == quads as usize) {
            Rows { rows: 1, quads: rows * quads }
        } else {
            Rows { rows, quads }
        }
    }

    /// One row of a matrix.
    pub fn row<F>(self, cells: &[F], (offset, stride): Place, row: u32) -> &[F] {
        &cells[4 * (offset as usize + row as usize * stride as usize)..][..4 * self.quads as usize]
    }

    /// One row of a matrix, to write.
    pub fn row_mut<F>(self, cells: &mut [F], (offset, stride): Place, row: u32) -> &mut [F] {
        &mut cells[4 * (offset as usize + row as usize * stride as usize)..][..4 * self.quads as usize]
    }

    /// Rows to be written in parallel, `block` neighbours at a time: (first row of the block, the block's floats from
    /// its first row on). The division does not depend on the number of threads.
    pub fn blocks_mut<F: Send>(
        self,
        cells: &mut [F],
        (offset, stride): Place,
        block: u32,
    ) -> impl IndexedParallelIterator<Item = (u32, &mut [F])> {
        let (offset, stride) = (4 * offset as usize, 4 * stride as usize);
        let len = (self.rows as usize - 1) * stride + 4 * self.quads as usize;
        cells[offset..][..len]
            .par_chunks_mut(block as usize * stride)
            .enumerate()
            .map(move |(i, cells)| (i as u32 * block, cells))
    }

    /// Pieces of at most some thousand floats to be written in parallel, for programs that take each element alone:
    /// (number of the piece, its floats).
    pub fn pieces_mut<F: Send>(
        self,
        cells: &mut [F],
        (offset, stride): Place,
    ) -> impl IndexedParallelIterator<Item = (usize, &mut [F])> {
        let (step, width) = self.piece_step(stride);
        let len = (self.rows as usize - 1) * step + 4 * self.quads as usize;
        cells[4 * offset as usize..][..len].par_chunks_mut(step).enumerate().map(move |(i, cells)| {
            let width = width.min(cells.len());
            (i, &mut cells[..width])
        })
    }

    /// `len` floats of another matrix that belong to a piece.
    pub fn piece<F>(self, cells: &[F], (offset, stride): Place, piece: usize, len: usize) -> &[F] {
        &cells[4 * offset as usize + piece * self.piece_step(stride).0..][..len]
    }

    fn piece_step(self, stride: u32) -> (usize, usize) {
        if self.rows == 1 { (PIECE, PIECE) } else { (4 * stride as usize, 4 * self.quads as usize) }
    }
}
