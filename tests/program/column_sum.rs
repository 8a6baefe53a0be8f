//! column_sum.
