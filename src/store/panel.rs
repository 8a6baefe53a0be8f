//! Panels: whole rows of one tensor, the unit in which parameters move. Pure arithmetic; it must never know where a panel
//! lies.

use crate::program::Matrix;
use crate::program::grad_norm::GRANULE_ROWS;
use crate::program::matmul::PANEL_ROWS;

// A panel must begin where the partial sums of the gradient's norm may begin, and where a contraction may be cut.
const _: () = assert!(PANEL_ROWS.is_multiple_of(GRANULE_ROWS));

/// The largest panel, unless the device binds less or has less memory.
pub const PANEL_BYTES: u64 = 64 << 20;

/// Rows `first_row .. first_row + rows` of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panel {
    /// Number of the panel in its tensor.
    pub index: usize,
    /// First row in the tensor.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
}

/// How one tensor is cut: every panel but the last has `panel_rows` rows, a multiple of [`PANEL_ROWS`], so that a
/// contraction over rows is chunked alike however the tensor is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    rows: usize,
    panel_rows: usize,
    stride: usize,
}

impl Cut {
    /// Cuts `rows x cols` into panels of at most `bytes`, but never of fewer than [`PANEL_ROWS`] rows.
    pub fn new(rows: usize, cols: usize, bytes: u64) -> Cut {
        let stride = Matrix::stride_for(cols);
        let fit = (bytes / (stride as u64 * 4)) as usize / PANEL_ROWS * PANEL_ROWS;
        Cut { rows, panel_rows: fit.max(PANEL_ROWS).min(rows), stride }
    }

    /// Number of panels.
    pub fn count(&self) -> usize {
        self.rows.div_ceil(self.panel_rows)
    }

    /// One panel.
    pub fn panel(&self, index: usize) -> Panel {
        let first_row = index * self.panel_rows;
        Panel { index, first_row, rows: self.panel_rows.min(self.rows - first_row) }
    }

    /// All panels, in order.
    pub fn panels(self) -> impl Iterator<Item = Panel> {
        (0..self.count()).map(move |i| self.panel(i))
    }

    /// Elements of the largest panel, with padding.
    pub fn elements(&self) -> usize {
        self.panel_rows * self.stride
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_cover_every_row_once() {
        for (rows, cols, bytes) in
            [(1, 768, 64), (512, 128, 1), (50257, 768, 64 << 20), (1025, 84, 1 << 18), (3072, 768, 1 << 21)]
        {
            let cut = Cut::new(rows, cols, bytes);
            let mut next = 0;
            for panel in cut.panels() {
                assert_eq!(panel.first_row, next);
                assert!(panel.rows > 0 && panel.first_row % PANEL_ROWS == 0);
                next += panel.rows;
            }
            assert_eq!(next, rows);
        }
    }
}
