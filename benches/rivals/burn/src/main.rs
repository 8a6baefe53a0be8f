//! The rival of the speed table in Burn: one training step of the shapes of `pytorch_gpt.py`. It knows nothing of Gaufre.

use burn::nn::attention::generate_autoregressive_mask;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::transformer::*;
use burn::nn::*;
use burn::optim::*;
use burn::prelude::*;
use std::time::Instant;

#[derive(Module, Debug)]
struct Gpt { tok: Embedding, pos: Embedding, enc: TransformerEncoder, ln: LayerNorm, head: Linear }
impl Gpt {
    fn new(l: usize, d: usize, h: usize, t: usize, v: usize, dev: &Device) -> Self {
        Self { tok: EmbeddingConfig::new(v, d).init(dev), pos: EmbeddingConfig::new(t, d).init(dev),
            enc: TransformerEncoderConfig::new(d, 4*d, h, l).with_dropout(0.0).with_norm_first(true).init(dev),
            ln: LayerNormConfig::new(d).init(dev), head: LinearConfig::new(d, v).with_bias(false).init(dev) }
    }
    fn forward(&self, x: Tensor<2, Int>) -> Tensor<3> {
        let [b, t] = x.dims(); let dev = x.device();
        let p = Tensor::<1, Int>::arange(0..t as i64, &dev).reshape([1, t]).repeat_dim(0, b);
        let h = self.tok.forward(x) + self.pos.forward(p);
        let m = generate_autoregressive_mask(b, t, &dev);
        let h = self.enc.forward(TransformerEncoderInput::new(h).mask_attn(m));
        self.head.forward(self.ln.forward(h))
    }
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let dev = match a[1].as_str() { "wgpu" => Device::wgpu(Default::default()), _ => Device::flex() };
    let dev = dev.autodiff();
    for name in &a[2..] {
        let (l, d, h, t, b, v) = match name.as_str() { "nano" => (4,128,4,128,8,256), "mini" => (6,384,6,256,8,256), _ => (12,768,12,256,2,50257) };
        let mut m = Gpt::new(l, d, h, t, v, &dev);
        let n = m.num_params();
        let mut opt = AdamWConfig::new().init();
        let x = Tensor::<1, Int>::arange(0..(b*t) as i64, &dev).remainder_scalar(v as i64).reshape([b, t]);
        let lossf = CrossEntropyLossConfig::new().init(&dev);
        let mut ts = vec![];
        for _ in 0..6 {
            let t0 = Instant::now();
            let out = m.forward(x.clone()).reshape([b*t, v]);
            let loss = lossf.forward(out, x.clone().reshape([b*t]));
            let lv = loss.clone();
            let g = GradientsParams::from_grads(loss.backward(), &m);
            m = opt.step(3e-4, m, g);
            let _ = lv.into_data();
            // force param
            let _ = m.ln.gamma.val().into_data();
            let _ = m.tok.weight.val().slice([0..1,0..1]).into_data();
            ts.push(t0.elapsed().as_secs_f64()); println!("  step {:.3}", ts.last().unwrap());
        }
        let mut s = ts[1..].to_vec(); s.sort_by(|a,b| a.total_cmp(b));
        println!("{} {name} params {:.1}M step {:.0} ms {:.0} tok/s ~{:.1} GFLOP/s", a[1], n as f64/1e6, s[2]*1e3, (b*t) as f64/s[2], 6.0*n as f64*(b*t) as f64/s[2]/1e9);
    }
}
