//! What the attention kernels are checked on: odd lengths, the largest head, grouped heads, a cache, no mask, windows, and dropout.

use super::pass::{Kind, extent};
use super::{Attention, AttentionParams, Dropout, runs};
use crate::device::Variant;
use crate::program::{Case, Fill, Matrix};

fn shapes() -> Vec<Attention> {
    let base = Attention {
        batch: 2,
        query_heads: 3,
        key_value_heads: 3,
        head_size: 28,
        query_len: 37,
        key_value_len: 37,
        query_start: 0,
        key_value_rows: 37,
        scale: 0.189,
        causal: true,
        window: None,
        dropout: None,
    };
    let dropout = |rate| Some(Dropout { key: 0x9e37_79b9_7f4a_7c15, rate });
    let one = Attention { batch: 1, query_heads: 1, key_value_heads: 1, ..base.clone() };
    let grouped = Attention { query_heads: 4, key_value_heads: 2, head_size: 9, scale: 0.3333, ..base.clone() };
    let cache = Attention { query_len: 5, query_start: 16, key_value_len: 21, key_value_rows: 24, ..grouped.clone() };
    vec![
        base.clone(),
        Attention { batch: 1, query_heads: 1, key_value_heads: 1, head_size: 256, scale: 0.0625, ..base.clone() },
        grouped.clone(),
        Attention { query_len: 5, query_start: 16, key_value_len: 21, key_value_rows: 24, ..base.clone() },
        Attention { query_len: 1, query_start: 20, key_value_len: 21, key_value_rows: 24, ..base.clone() },
        Attention { query_len: 19, causal: false, ..one.clone() },
        Attention { query_len: 1, key_value_len: 1, key_value_rows: 1, ..one.clone() },
        Attention { query_len: 65, key_value_len: 65, key_value_rows: 65, ..one.clone() },
        Attention { query_len: 65, key_value_len: 65, key_value_rows: 65, window: Some(21), ..one.clone() },
        Attention { window: Some(7), ..cache.clone() },
        Attention { window: Some(1), ..one.clone() },
        Attention { dropout: dropout(0.1), ..base.clone() },
        Attention { head_size: 256, scale: 0.0625, dropout: dropout(0.5), ..one.clone() },
        Attention { window: Some(7), dropout: dropout(0.3), ..cache },
        Attention { dropout: dropout(0.2), query_len: 19, causal: false, ..one },
    ]
}

/// Queries, keys and values as column slices of rows of one width; `lse` and `delta` dense.
struct Layout {
    queries: Fill,
    keys: Fill,
    scalars: Fill,
    params: AttentionParams,
}

fn layout(shape: &Attention) -> Layout {
    let (query_cols, key_cols) = (shape.query_heads * shape.head_size, shape.key_value_heads * shape.head_size);
    let cols = query_cols + 2 * key_cols;
    let (stride, row_stride) = (Matrix::stride_for(cols), Matrix::stride_for(shape.query_len));
    let wide = |rows: usize| Fill::Normal { rows, cols, stride, scale: 1.0, mean: 0.0 };
    let mut params = shape.shape_params();
    (params.q_stride, params.o_stride, params.grad_stride) = (stride as u32, stride as u32, stride as u32);
    (params.k_stride, params.v_stride) = (stride as u32, stride as u32);
    params.k_offset = query_cols as u32;
    params.v_offset = (query_cols + key_cols) as u32;
    params.row_stride = row_stride as u32;
    let rows = shape.batch * shape.query_heads;
    Layout {
        queries: wide(shape.batch * shape.query_len),
        keys: wide(shape.batch * shape.key_value_rows),
        // About the logarithm of a sum of some exponentials, so that weights recomputed from it are of the size of 1.
        scalars: Fill::Normal { rows, cols: shape.query_len, stride: row_stride, scale: 0.5, mean: 2.0 },
        params,
    }
}

fn poison(like: &Fill) -> Fill {
    match like {
        Fill::Normal { rows, stride, .. } => Fill::Poison { len: rows * stride },
        _ => unreachable!("operands are normal"),
    }
}

/// Nothing is saved in a launch of all steps.
fn no_state() -> Fill {
    Fill::Poison { len: 64 }
}

fn case(shape: Attention, kind: Kind, params: AttentionParams, fills: Vec<Fill>) -> Case {
    let window = shape.window.map_or(String::new(), |window| format!(" window {window}"));
    let dropout = shape.dropout.map_or(String::new(), |dropout| format!(" dropout {}", dropout.rate));
    let label = format!(
        "B{} H{}/{} hd{} T{}@{} of {}{}{window}{dropout}",
        shape.batch,
        shape.query_heads,
        shape.key_value_heads,
        shape.head_size,
        shape.query_len,
        shape.query_start,
        shape.key_value_len,
        if shape.causal { "" } else { " full" }
    );
    Case {
        label,
        fills,
        launch: Box::new(move |variant: &Variant| {
            let mut params = params;
            let (own_blocks, steps) = extent(kind, &shape, &params, variant);
            params.last_step = steps;
            let heads = if kind == Kind::KeyValue { shape.key_value_heads } else { shape.query_heads };
            params.width = heads as u32;
            let words = bytemuck::cast_slice(bytemuck::bytes_of(&params)).to_vec();
            let groups = shape.batch as u32 * own_blocks * params.width;
            (words, if runs(variant, &params) { groups } else { 0 })
        }),
    }
}

pub(super) fn forward() -> Vec<Case> {
    let build = |shape: Attention| {
        let Layout { queries, keys, scalars, params } = layout(&shape);
        let fills = vec![queries.clone(), keys.clone(), keys, poison(&queries), poison(&scalars), no_state()];
        case(shape, Kind::Forward, params, fills)
    };
    shapes().into_iter().map(build).collect()
}

pub(super) fn delta() -> Vec<Case> {
    let build = |shape: Attention| {
        let Layout { queries, scalars, params, .. } = layout(&shape);
        let fills = vec![queries.clone(), queries, poison(&scalars)];
        case(shape, Kind::Forward, params, fills)
    };
    shapes().into_iter().map(build).collect()
}

fn backward(kind: Kind) -> Vec<Case> {
    let build = |shape: Attention| {
        let Layout { queries, keys, scalars, mut params } = layout(&shape);
        let gradients = if kind == Kind::KeyValue { poison(&keys) } else { poison(&queries) };
        if kind == Kind::KeyValue {
            (params.grad_offset, params.grad_v_offset) = (params.k_offset, params.v_offset);
        }
        let fills = vec![queries.clone(), keys.clone(), keys, queries, scalars.clone(), scalars, gradients, no_state()];
        case(shape, kind, params, fills)
    };
    shapes().into_iter().map(build).collect()
}

pub(super) fn backward_query() -> Vec<Case> {
    backward(Kind::Query)
}

pub(super) fn backward_key_value() -> Vec<Case> {
    backward(Kind::KeyValue)
}
