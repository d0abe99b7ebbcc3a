//! What BigGAN and BigGAN-deep have in common, with everything folded that does not depend on the sample.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::layers::{Layer, copy};
use super::{LoadError, Weights};

/// Names and sizes of a folded network.
#[derive(Clone)]
pub(super) struct Layout {
    /// Names of the first layer, the last normalisation and the last convolution.
    pub names: [&'static str; 3],
    pub classes: i64,
    pub embed: i64,
    pub latent: i64,
    /// Outputs and inputs of the first layer, which makes the 4x4 maps.
    pub first: [i64; 2],
    /// Name and shape of the blocks' convolutions, in order.
    pub convs: Vec<(String, [i64; 4])>,
    pub attention: Option<AttentionLayout>,
    /// Channels of the conditional normalisations, in order.
    pub norms: Vec<i64>,
    /// Channels of the last maps.
    pub last: i64,
}

/// The attention block.
#[derive(Clone)]
pub(super) struct AttentionLayout {
    /// Names of theta, phi, g and o.
    pub names: [String; 4],
    pub channels: i64,
    /// Number of convolutions before it.
    pub after: usize,
}

impl AttentionLayout {
    fn shapes(&self) -> [[i64; 4]; 4] {
        let n = self.channels;
        [[n / 8, n], [n / 8, n], [n / 2, n], [n, n / 2]].map(|[output, input]| [output, input, 1, 1])
    }

    /// The folded tensors: `take` gives a weight by name and shape, and the last is multiplied by gamma.
    pub fn fold(
        &self,
        gamma: &Tensor,
        mut take: impl FnMut(&str, &[i64]) -> Result<Tensor, LoadError>,
    ) -> Result<Vec<(String, Tensor)>, LoadError> {
        let parts = self.names.iter().zip(self.shapes()).enumerate().map(|(i, (name, shape))| {
            let weight = take(name, &shape)?;
            Ok((format!("{name}.weight"), if i == 3 { weight * gamma } else { weight }))
        });
        parts.collect()
    }
}

/// A network without the order of its layers.
pub(super) struct Folded {
    layout: Layout,
    /// `[classes, embed]`
    pub embeddings: Tensor,
    pub first: Layer,
    /// All conditional normalisations as one product with the condition, `[2 * total, z + embed]` and `[2 * total]`: all a, then all b.
    pub norms: Layer,
    pub convs: Vec<Layer>,
    /// Weights theta, phi, g and o of the 1x1 convolutions.
    attention: Option<[Tensor; 4]>,
    /// Last normalisation, `[1, last, 1, 1]`.
    bn: Layer,
    to_rgb: Layer,
}

impl Folded {
    pub fn load(weights: &mut Weights, layout: Layout) -> Result<Folded, LoadError> {
        let _no_grad = tch::no_grad_guard();
        let Layout { names: [first, bn, to_rgb], classes, embed, latent, last, .. } = layout;
        let total: i64 = layout.norms.iter().sum();
        let convs = layout.convs.iter().map(|(name, shape)| Layer::load_convolution(weights, name, shape));
        let convs = convs.collect::<Result<_, _>>()?;
        let attention = layout.attention.as_ref().map(|attention| -> Result<[Tensor; 4], LoadError> {
            let (names, shapes) = (&attention.names, attention.shapes());
            let mut part = |i: usize| weights.take(&format!("{}.weight", names[i]), &shapes[i]);
            Ok([part(0)?, part(1)?, part(2)?, part(3)?])
        });
        let view = |t: Tensor| t.view([1, -1, 1, 1]);
        let Layer { weight, bias } = Layer::load(weights, bn, &[last])?;
        Ok(Folded {
            embeddings: weights.take("embeddings", &[classes, embed])?,
            first: Layer::load(weights, first, &layout.first)?,
            norms: Layer::load(weights, "norms", &[2 * total, latent + embed])?,
            convs,
            attention: attention.transpose()?,
            bn: Layer { weight: view(weight), bias: view(bias) },
            to_rgb: Layer::load_convolution(weights, to_rgb, &[3, last, 3, 3])?,
            layout,
        })
    }

    /// Kind of the convolutions' numbers.
    pub fn kind(&self) -> Kind {
        self.to_rgb.weight.kind()
    }

    /// Scales and shifts of all conditional normalisations for `[z, c]`. They are split in one operation, so that the gradient of all
    /// is put together in one, too.
    pub fn norms(&self, condition: &Tensor) -> Norms {
        let product = self.norms.linear(condition).unsqueeze(-1).unsqueeze(-1);
        Norms { parts: product.split_with_sizes(self.layout.norms.repeat(2), 1), next: 0 }
    }

    /// Self-attention (Zhang et al. 2019) without the 1/sqrt(d); gamma is folded into `o`.
    pub fn attention(&self, x: &Tensor) -> Tensor {
        let [theta, phi, g, o] = self.attention.as_ref().expect("the layout has an attention block");
        let (n, _, h, w) = x.size4().expect("images are four-dimensional");
        let conv = |x: &Tensor, weight: &Tensor| x.conv2d::<Tensor>(weight, None, [1, 1], [0, 0], [1, 1], 1);
        let theta = conv(x, theta).reshape([n, -1, h * w]);
        let phi = conv(x, phi).max_pool2d_default(2).reshape([n, -1, h * w / 4]);
        let g = conv(x, g).max_pool2d_default(2).reshape([n, -1, h * w / 4]);
        let attention = theta.transpose(1, 2).bmm(&phi).softmax(-1, None);
        x + conv(&g.bmm(&attention.transpose(1, 2)).reshape([n, -1, h, w]), o)
    }

    /// Images of the last block's maps.
    pub fn images(&self, x: &Tensor) -> Tensor {
        let x = kernels::affine_relu(x, &self.bn.weight, &self.bn.bias);
        self.to_rgb.convolve(&x).to_kind(Kind::Float).tanh()
    }

    /// The weights that fine-tuning changes, in the order of the layers.
    pub fn weights(&self) -> Vec<(String, Tensor)> {
        let Layout { names: [first, _, to_rgb], convs, attention, .. } = &self.layout;
        let named = |range: Range<usize>| range.flat_map(|i| self.convs[i].named(&convs[i].0));
        let parts = attention.iter().zip(&self.attention).flat_map(|(layout, parts)| layout.names.iter().zip(parts));
        let parts = parts.map(|(name, part)| (format!("{name}.weight"), part.shallow_clone()));
        let after = attention.as_ref().map_or(0, |attention| attention.after);
        let blocks = named(0..after).chain(parts).chain(named(after..convs.len()));
        self.first.named(first).into_iter().chain(blocks).chain(self.to_rgb.named(to_rgb)).collect()
    }

    /// `weights`, and what fine-tuning leaves as it is: `embeddings` `[classes, embed]`, `norms.{weight,bias}` (all conditional
    /// normalisations in their order, as in `norms`), and `{weight,bias}` `[last]` of the last normalisation. Handles, not copies.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let bn = Layer { weight: self.bn.weight.flatten(0, -1), bias: self.bn.bias.flatten(0, -1) };
        let mut tensors = self.weights();
        tensors.push(("embeddings".into(), self.embeddings.shallow_clone()));
        tensors.extend(self.norms.named("norms"));
        tensors.extend(bn.named(self.layout.names[1]));
        tensors
    }

    /// A copy on a device, whose convolutions compute in `kind`.
    pub fn copy(&self, device: Device, kind: Kind) -> Folded {
        let layer = |layer: &Layer| layer.copy(device, Kind::Float);
        let attention = |weights: &[Tensor; 4]| weights.each_ref().map(|weight| copy(weight, device).to_kind(kind));
        Folded {
            layout: self.layout.clone(),
            embeddings: copy(&self.embeddings, device),
            first: layer(&self.first),
            norms: layer(&self.norms),
            convs: self.convs.iter().map(|conv| conv.copy(device, kind)).collect(),
            attention: self.attention.as_ref().map(attention),
            bn: layer(&self.bn),
            to_rgb: self.to_rgb.copy(device, kind),
        }
    }
}

/// All scales, then all shifts, of the conditional normalisations, which take theirs in order.
pub(super) struct Norms {
    parts: Vec<Tensor>,
    next: usize,
}

impl Norms {
    /// `relu(a x + b)` of the next normalisation.
    pub fn relu(&mut self, x: &Tensor) -> Tensor {
        let (a, b) = self.parts.split_at(self.parts.len() / 2);
        let i = self.next;
        self.next += 1;
        kernels::affine_relu(x, &a[i], &b[i])
    }
}

/// Nearest neighbour, twice the size.
pub(super) fn upsample(x: &Tensor) -> Tensor {
    let size = x.size();
    x.upsample_nearest2d([size[2] * 2, size[3] * 2], None, None)
}

/// A normalisation as a checkpoint has it: mean, variance, scale S and offset O.
pub(super) struct Unfolded {
    pub moments: (Tensor, Tensor),
    pub scale: Tensor,
    pub offset: Tensor,
}

impl Unfolded {
    /// `(x - m) / sqrt(v + eps) S + O` as one scale and one offset.
    pub fn fold(self, eps: f64) -> Layer {
        let (mean, variance) = self.moments;
        let weight = self.scale / (variance + eps).sqrt();
        let bias = self.offset - mean * &weight;
        Layer { weight, bias }
    }

    /// Conditional normalisations, with S and O `[channels, cond]`, as one affine map of the condition: `[2 * total, cond]` and
    /// `[2 * total]`, all a, then all b.
    ///
    /// `(x - m) r (1 + S cond) + O cond = a x + b`, r = 1/sqrt(v + eps):
    /// `a = r + (r S) cond`, `b = -m r + (O - m r S) cond`.
    pub fn fold_all(norms: Vec<Unfolded>, eps: f64) -> Layer {
        let [mut a, mut b, mut bias_a, mut bias_b] = [const { Vec::new() }; 4];
        for Unfolded { moments: (mean, variance), scale, offset } in norms {
            let r = (variance + eps).rsqrt();
            let product = scale * r.unsqueeze(1);
            b.push(offset - mean.unsqueeze(1) * &product);
            a.push(product);
            bias_b.push(-mean * &r);
            bias_a.push(r);
        }
        a.append(&mut b);
        bias_a.append(&mut bias_b);
        Layer { weight: Tensor::cat(&a, 0), bias: Tensor::cat(&bias_a, 0) }
    }
}
