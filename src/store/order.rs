//! How the values of a tensor lie in a file of other software, against how they lie here: as they are, transposed, or the rows
//! of queries, keys and values head by head. Pure arithmetic; it must never know a file, nor whose it is.

/// How a tensor lies in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As here.
    Same,
    /// As its transpose.
    Transposed,
    /// Rows (of a vector: elements) head by head, those of a head's query first, then its key's and its value's; here those of
    /// all queries come first, then those of all keys, then those of all values.
    Grouped {
        /// Number of heads.
        heads: usize,
        /// Rows of one head's query.
        head_size: usize,
    },
}

impl Order {
    /// Lengths of the dimensions in the file of a tensor of `rows x cols`.
    pub fn shape(self, rows: usize, cols: usize, vector: bool) -> Vec<usize> {
        match self {
            _ if vector => vec![cols],
            Order::Transposed => vec![cols, rows],
            _ => vec![rows, cols],
        }
    }

    /// The row there that is row `row` here.
    ///
    /// # Panics
    /// For a transpose, whose rows are columns.
    pub fn theirs(self, row: usize) -> usize {
        match self {
            Order::Same => row,
            Order::Grouped { heads, head_size } => {
                let (part, row) = (row / (heads * head_size), row % (heads * head_size));
                (row / head_size * 3 + part) * head_size + row % head_size
            }
            Order::Transposed => panic!("the rows of a transpose are columns"),
        }
    }

    /// The row here that is row `row` there.
    ///
    /// # Panics
    /// For a transpose, whose rows are columns.
    pub fn ours(self, row: usize) -> usize {
        match self {
            Order::Same => row,
            Order::Grouped { heads, head_size } => {
                let (head, row) = (row / (3 * head_size), row % (3 * head_size));
                (row / head_size * heads + head) * head_size + row % head_size
            }
            Order::Transposed => panic!("the rows of a transpose are columns"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_by_head_and_back() {
        let order = Order::Grouped { heads: 2, head_size: 3 };
        // q0 q1 k0 k1 v0 v1 here; q0 k0 v0 q1 k1 v1 there.
        let theirs: Vec<usize> = (0..18).map(|row| order.theirs(row)).collect();
        assert_eq!(theirs, [0, 1, 2, 9, 10, 11, 3, 4, 5, 12, 13, 14, 6, 7, 8, 15, 16, 17]);
        for (order, rows) in [(order, 18), (Order::Same, 9), (Order::Grouped { heads: 5, head_size: 8 }, 120)] {
            assert!((0..rows).all(|row| order.ours(order.theirs(row)) == row), "{order:?}");
        }
    }
}
