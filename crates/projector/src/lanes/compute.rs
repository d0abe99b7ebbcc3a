//! One batch on one device: pieces that do the same work.

use proto::{Params, Precision};
use tch::{Device, Tensor};

use super::blocks::Piece;
use super::devices::Local;
use super::request::{Response, Work};
use super::view::View;
use crate::descent::{self, Adam, AdamState};
use crate::generator::Generator;
use crate::nn::encoder::Encoder;
use crate::nn::lpips::Lpips;
use crate::rows::{rows, to_numbers, to_rows};

/// Computes pieces that do the same work. The responses come in the order of the pieces.
pub(super) fn compute(local: &Local, params: &Params, pieces: &[Piece]) -> Vec<Response> {
    let _no_grad = tch::no_grad_guard();
    let batch = Batch::new(local, params, pieces);
    let mut response = match pieces[0].request.work {
        Work::Descend { steps, track_inverted, record } => batch.descend(steps, moments(pieces), track_inverted, record),
        Work::Evaluate => batch.evaluate(),
        Work::Gradient => batch.gradient(),
        Work::Render => batch.render(),
        Work::Encode => batch.encode(),
    };
    pieces.iter().map(|piece| response.take(piece.request.z.len())).collect()
}

/// The moments that the lanes of all pieces continue with; `None`: they start at zero.
fn moments(pieces: &[Piece]) -> Option<AdamState> {
    let each = pieces.iter().map(|piece| piece.request.adam.clone());
    each.collect::<Option<Vec<_>>>()?.into_iter().reduce(|mut all, next| {
        all.extend(next);
        all
    })
}

/// The networks in the batch's precision, and a row of z `[n, latent_dim]` and c `[n, embed_dim]` for each lane.
struct Batch<'a> {
    device: Device,
    generator: &'a dyn Generator,
    lpips: &'a Lpips,
    encoder: Option<&'a Encoder>,
    params: &'a Params,
    view: View,
    z: Tensor,
    c: Tensor,
}

impl<'a> Batch<'a> {
    fn new(local: &'a Local, params: &'a Params, pieces: &[Piece]) -> Batch<'a> {
        let Local { device, ref model, .. } = *local;
        let (generator, lpips) = local.networks(if pieces[0].request.exact { Precision::Fp32 } else { params.precision });
        let z = rows(pieces.iter().flat_map(|piece| &piece.request.z), device);
        let classes = pieces.iter().map(|Piece { target, request, .. }| match &request.c {
            Some(c) => rows(c, device),
            None => generator.embed(target.class).unsqueeze(0).repeat([request.z.len() as i64, 1]),
        });
        let c = Tensor::cat(&classes.collect::<Vec<_>>(), 0);

        let views = pieces.iter().map(|Piece { target, request, .. }| {
            (View::new(model, device, params, target, &request.transforms), request.z.len())
        });
        let transforms = pieces.iter().map(|Piece { request, .. }| request.transforms.of_lanes(request.z.len()));
        let transforms = transforms.collect::<Option<Vec<_>>>().map(|each| each.concat());
        let view = View::beside(views.collect(), transforms);
        Batch { device, generator, lpips, encoder: model.encoder.as_ref(), params, view, z, c }
    }

    /// G at z within the limit, `[n, 3, r, r]`.
    fn images(&self) -> Tensor {
        self.generator.generate(&descent::clamp(&self.z, self.params.descent.limit), &self.c)
    }

    /// The response that holds z and c alone.
    fn latents(&self) -> Response {
        Response { z: to_rows(&self.z), c: to_rows(&self.c), ..Default::default() }
    }

    fn descend(mut self, steps: u32, adam: Option<AdamState>, track_inverted: bool, record: bool) -> Response {
        let Batch { generator, lpips, params, .. } = self;
        let mut least: Option<Tensor> = None;
        let mut losses = Vec::new();
        let mut state = match adam {
            Some(adam) => Adam::restore(&adam, self.device),
            None => Adam::new(&self.z, &self.c),
        };
        for _ in 0..steps {
            self.z = descent::clamp(&self.z, params.descent.limit);
            let (gradient, loss, images) = descent::gradient(generator, lpips, &self.view.forward, &self.z, &self.c);
            if track_inverted {
                let now = self.view.inverse.loss(lpips, &images);
                least = Some(match least {
                    // `fminimum` would ignore NaN; a lane that diverged must not look good.
                    Some(before) => before.minimum(&now),
                    None => now,
                });
            }
            if record {
                losses.push(loss);
            }
            state.step(&mut self.z, &mut self.c, &gradient, &params.descent);
        }
        let images = self.images();
        let loss = self.view.forward.loss(lpips, &images);
        let inverted = least.unwrap_or_else(|| self.view.inverse.loss(lpips, &images));
        let curves = if losses.is_empty() { vec![] } else { to_rows(&Tensor::stack(&losses, 1)) };
        Response { loss: to_numbers(&loss), inverted: to_numbers(&inverted), adam: Some(state.save()), curves, ..self.latents() }
    }

    fn evaluate(&self) -> Response {
        let images = self.images();
        Response {
            loss: to_numbers(&self.view.forward.loss(self.lpips, &images)),
            inverted: to_numbers(&self.view.inverse.loss(self.lpips, &images)),
            ..self.latents()
        }
    }

    fn gradient(mut self) -> Response {
        self.z = descent::clamp(&self.z, self.params.descent.limit);
        let (gradient, loss, _) = descent::gradient(self.generator, self.lpips, &self.view.forward, &self.z, &self.c);
        Response { loss: to_numbers(&loss), gradient: to_rows(&gradient), ..self.latents() }
    }

    fn render(&self) -> Response {
        let Response { z, c, .. } = self.latents();
        Response { z, c, ..self.view.render(self.lpips, self.params, &self.images()) }
    }

    fn encode(mut self) -> Response {
        let encoder = self.encoder.expect("the caller checked that the model has an encoder");
        let images = self.view.forward.image.expand([self.z.size()[0], -1, -1, -1], false);
        self.z = encoder.encode(&images, &self.c);
        self.latents()
    }
}
