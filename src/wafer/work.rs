//! What a program does, as the cost model sees it: how much is multiplied and added, and which sums cross tiles. It must
//! never know how the work is cut, or what it costs: that is for a machine to say.

use serde::Serialize;

/// What a program does once. Elements, not bytes; whatever the precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Work {
    /// C[m, n] += sum over k.
    Product {
        /// Rows of C.
        m: u64,
        /// Columns of C.
        n: u64,
        /// Terms of each sum.
        k: u64,
    },
    /// `pairs` of query and key (of one head) for each of which `products` dot products of `head_size` are made (forward 2,
    /// gradient of queries 3, of keys and values 4); `rows` queries of `heads` heads stay or pass. All heads together have
    /// `heads * pairs` pairs.
    Attention {
        /// Heads of the queries.
        heads: u64,
        /// Columns of a head.
        head_size: u64,
        /// Queries of a head, over all sequences.
        rows: u64,
        /// Pairs of a query and a key that it sees, of one head, over all sequences.
        pairs: u64,
        /// Dot products a pair.
        products: u64,
    },
    /// `sums` sums along each of `lines` rows of `len` columns, each given back to the whole row.
    Rows {
        /// Rows.
        lines: u64,
        /// Columns.
        len: u64,
        /// Sums along a row.
        sums: u64,
    },
    /// One sum down each of `lines` columns of `len` rows.
    Columns {
        /// Columns.
        lines: u64,
        /// Rows.
        len: u64,
    },
    /// One sum of `len` elements over all tiles.
    Grid {
        /// Elements.
        len: u64,
    },
    /// Each of `elements` alone.
    Local {
        /// Elements.
        elements: u64,
    },
}

impl Work {
    /// Multiply-adds of its products; none where it only adds.
    pub fn macs(&self) -> u64 {
        match *self {
            Work::Product { m, n, k } => m * n * k,
            Work::Attention { heads, head_size, pairs, products, .. } => heads * pairs * products * head_size,
            Work::Rows { .. } | Work::Columns { .. } | Work::Grid { .. } | Work::Local { .. } => 0,
        }
    }

    /// Additions of its sums, and one operation for each element that is alone; none where it multiplies and adds.
    pub fn operations(&self) -> u64 {
        match *self {
            Work::Product { .. } | Work::Attention { .. } => 0,
            Work::Rows { lines, len, sums } => lines * len * sums,
            Work::Columns { lines, len } => lines * len,
            Work::Grid { len } => len,
            Work::Local { elements } => elements,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_those_of_the_loops() {
        let count = |counts: &[u64]| counts.iter().product::<u64>();
        assert_eq!(Work::Product { m: 3, n: 5, k: 7 }.macs(), count(&[3, 5, 7]));
        // Two sequences of three tokens, causal: 6 pairs each.
        let attention = Work::Attention { heads: 4, head_size: 8, rows: 6, pairs: 12, products: 2 };
        assert_eq!((attention.macs(), attention.operations()), (4 * 12 * 2 * 8, 0));
        let rows = Work::Rows { lines: 3, len: 5, sums: 2 };
        assert_eq!((rows.macs(), rows.operations()), (0, 30));
        assert_eq!(Work::Columns { lines: 3, len: 5 }.operations(), 15);
        assert_eq!(Work::Grid { len: 9 }.operations() + Work::Local { elements: 9 }.operations(), 18);
    }
}
