//! A matrix on a device: rows of floats at an explicit stride. What every program takes; knows no tensor names.

use crate::device::{Buffer, Device, DeviceError, Elem, Result, View};

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
    pub fn rows(&self, first: usize, rows: usize) -> Matrix {
        assert!(first + rows <= self.rows, "rows {first}+{rows} of {self:?}");
        Matrix { offset: self.offset + first * self.stride, rows, ..self.clone() }
    }

    /// Columns `first .. first + cols`, addressed by offset in the same view.
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
    pub fn download(&self, device: &Device) -> Result<Vec<f32>> {
        Ok(self.dense(&device.download(&self.view)?))
    }

    /// The same at the precision the device keeps.
    pub fn download_f64(&self, device: &Device) -> Result<Vec<f64>> {
        Ok(self.dense(&device.download_f64(&self.view)?))
    }

    fn dense<T: Copy>(&self, padded: &[T]) -> Vec<T> {
        (0..self.rows).flat_map(|r| &padded[self.offset + r * self.stride..][..self.cols]).copied().collect()
    }
}
