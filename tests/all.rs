//! Every test that needs a device or a file: one binary, one module a subject. Structure alone is held by tidy.rs.

mod allocations;
mod attacks;
mod canary;
mod cli;
mod data;
mod fabric;
mod golden;
mod hugging_face;
mod model;
mod parsers;
mod plan;
mod report;
mod rig;
mod streaming;
mod trace;
mod training;

mod device {
    mod blank;
    mod errors;
    mod fixture;
    mod order;
    mod portable;
    mod sram;
    mod trusted;
}

mod runs {
    mod damage;
    mod desk;
    mod guard;
    mod kills;
    mod stops;
    mod streamed;
    mod wafers;
}

mod program {
    mod activation;
    mod adafactor;
    mod adamw;
    mod all_reduce;
    pub mod attention;
    mod column_sum;
    mod cross_entropy;
    mod dropout;
    mod embedding;
    mod grad_norm;
    mod initial;
    mod layer_norm;
    pub mod matmul;
    mod philox;
    mod quantize;
    mod residual_add;
    mod rms_norm;
    mod rotary;
    mod round;
    mod sgd;
}
