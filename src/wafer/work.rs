//! What a program does, as a cost model sees it: shapes alone. It must never know how a program is run.

/// What a program computes and along which side of the wafer its sums travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Work {
    /// `C[m, n] += sum over k`.
    Product {
        /// Rows of C: tokens.
        m: u64,
        /// Columns of C.
        n: u64,
        /// Depth of the contraction.
        k: u64,
    },
    /// A pass of attention.
    Attention {
        /// Heads of the queries, of all sequences.
        heads: u64,
        /// Columns of a head.
        head_size: u64,
        /// Queries of a sequence.
        rows: u64,
        /// Pairs of a query and a key that meet, of all heads.
        pairs: u64,
        /// Dot products of `head_size` terms that a pair takes: 2 forward, 3 for the gradient of queries, 4 for those of
        /// keys and values.
        products: u64,
    },
    /// Sums along rows, each given back to the whole row.
    Rows {
        /// Rows.
        lines: u64,
        /// Columns of a row.
        len: u64,
        /// Sums of a row.
        sums: u64,
    },
    /// One sum down each column.
    Columns {
        /// Columns.
        lines: u64,
        /// Rows of a column.
        len: u64,
    },
    /// One sum over all tiles.
    Grid {
        /// Elements.
        len: u64,
    },
    /// Each element alone.
    Local {
        /// Elements.
        elements: u64,
    },
}
