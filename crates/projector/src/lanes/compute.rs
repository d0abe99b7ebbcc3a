//! One batch on one device: pieces that do the same work.

use proto::{Params, Precision};
use tch::{Device, Tensor};

use super::blocks::Piece;
use super::devices::Local;
use super::request::{Response, Work};
use super::view::View;
use crate::descent::{self, Adam, AdamState, Point};
use crate::generator::Generator;
use crate::nn::encoder::Encoder;
use crate::nn::lpips::Lpips;
use crate::rows::{rows, to_numbers, to_rows};
use crate::transform::{Space, Tensors};

/// Computes pieces that do the same work. The responses come in the order of the pieces.
pub(super) fn compute(local: &Local, params: &Params, pieces: &[Piece]) -> Vec<Response> {
    let _no_grad = tch::no_grad_guard();
    let batch = Batch::new(local, params, pieces);
    let mut response = match pieces[0].request.work {
        Work::Descend { steps, total, track_inverted, record } => {
            batch.descend((steps, total), moments(pieces), track_inverted, record)
        }
        Work::Evaluate => batch.evaluate(),
        Work::Gradient => batch.gradient(),
        Work::Render => batch.render(&pieces.iter().map(|piece| piece.request.z.len()).collect::<Vec<_>>()),
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

/// The networks in the batch's precision, and the point of each lane.
struct Batch<'a> {
    device: Device,
    generator: &'a dyn Generator,
    lpips: &'a Lpips,
    encoder: Option<&'a Encoder>,
    params: &'a Params,
    view: View,
    point: Point,
    space: Option<Space>,
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
        let space = params.transform.as_ref().filter(|_| params.descent.lr_transform > 0.0).map(Space::new);
        let phi = match (&space, &transforms) {
            (Some(space), Some(each)) => {
                let vectors = each.iter().map(|t| space.vector(t).into_iter().map(|v| v as f32).collect());
                Some(rows(&vectors.collect::<Vec<Vec<f32>>>(), device))
            }
            _ => None,
        };
        let view = View::beside(views.collect(), transforms);
        Batch { device, generator, lpips, encoder: model.encoder.as_ref(), params, view, point: Point { z, c, phi }, space }
    }

    /// G at z within the limit, `[n, 3, r, r]`.
    fn images(&self) -> Tensor {
        self.generator.generate(&descent::clamp(&self.point.z, self.params.descent.limit), &self.point.c)
    }

    /// The transforms of the lanes' vectors; `None`: they stay.
    fn moving(&self, point: &Point) -> Option<Tensors> {
        Some(self.space.as_ref()?.tensors(point.phi.as_ref()?))
    }

    /// The response that holds the point alone.
    fn latents(&self) -> Response {
        let transforms = match (&self.space, &self.point.phi) {
            (Some(space), Some(phi)) => {
                to_rows(phi).iter().map(|v| space.transform(&v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>())).collect()
            }
            _ => vec![],
        };
        Response { z: to_rows(&self.point.z), c: to_rows(&self.point.c), transforms, ..Default::default() }
    }

    /// Gradient `[z | c | phi]` of the loss at z within the limit, the loss `[n]`, and the images.
    fn step(&mut self) -> (Tensor, Tensor, Tensor) {
        let leaves = self.point.leaves(self.params.descent.limit);
        let (loss, images) = tch::with_grad(|| {
            let images = self.generator.generate(&leaves.z, &leaves.c);
            let loss = match self.moving(&leaves) {
                Some(transforms) => self.view.loss_under(self.lpips, &images, &transforms),
                None => self.view.loss(self.lpips, &images),
            };
            (loss, images)
        });
        let gradient = leaves.gradient(&loss);
        self.point.z = leaves.z.detach();
        (gradient, loss.detach(), images.detach())
    }

    fn descend(mut self, (steps, total): (u32, u32), adam: Option<AdamState>, track_inverted: bool, record: bool) -> Response {
        let mut least: Option<Tensor> = None;
        let mut losses = Vec::new();
        let mut state = match adam {
            Some(adam) => Adam::restore(&adam, self.device),
            None => Adam::new(&self.point),
        };
        for _ in 0..steps {
            let (gradient, loss, images) = self.step();
            if track_inverted {
                let now = self.inverted_loss(&images);
                least = Some(match least {
                    // `fminimum` would ignore NaN; a lane that diverged must not look good.
                    Some(before) => before.minimum(&now),
                    None => now,
                });
            }
            if record {
                losses.push(loss);
            }
            state.step(&mut self.point, &gradient, &self.params.descent, total);
        }
        let mut response = Response { adam: Some(state.save()), ..self.latents() };
        if track_inverted && !record {
            // Nobody asks for the loss after the last step.
            response.inverted = least.as_ref().map_or(vec![], to_numbers);
            return response;
        }
        let images = self.images();
        response.inverted = to_numbers(&least.unwrap_or_else(|| self.inverted_loss(&images)));
        if record {
            response.loss = match self.moving(&self.point) {
                Some(transforms) => to_numbers(&self.view.loss_under(self.lpips, &images, &transforms)),
                None => to_numbers(&self.view.loss(self.lpips, &images)),
            };
            response.curves = to_rows(&Tensor::stack(&losses, 1));
        }
        response
    }

    /// The inverted loss under the transforms as they are now.
    fn inverted_loss(&self, images: &Tensor) -> Tensor {
        self.view.inverted_loss(self.lpips, images, self.moving(&self.point).as_ref())
    }

    fn evaluate(&self) -> Response {
        let images = self.images();
        Response {
            loss: to_numbers(&self.view.loss(self.lpips, &images)),
            inverted: to_numbers(&self.view.inverted_loss(self.lpips, &images, None)),
            ..self.latents()
        }
    }

    fn gradient(mut self) -> Response {
        let limit = self.params.descent.limit;
        let (gradient, loss, _) = self.step();
        // The step left z within the limit. A component that points out of it says nothing: the loss is flat there.
        let (z, rest) = (&self.point.z, gradient.size()[1] - self.point.z.size()[1]);
        let of_z = gradient.narrow(1, 0, z.size()[1]);
        let outward = z.ge(limit).logical_and(&of_z.lt(0.0)).logical_or(&z.le(-limit).logical_and(&of_z.gt(0.0)));
        let gradient = Tensor::cat(&[of_z.masked_fill(&outward, 0.0), gradient.narrow(1, z.size()[1], rest)], 1);
        Response { loss: to_numbers(&loss), gradient: to_rows(&gradient), ..self.latents() }
    }

    fn render(&self, blocks: &[usize]) -> Response {
        let Response { z, c, transforms, .. } = self.latents();
        Response { z, c, transforms, ..self.view.render(self.lpips, self.params, &self.images(), blocks) }
    }

    fn encode(mut self) -> Response {
        let encoder = self.encoder.expect("the caller checked that the model has an encoder");
        let images = self.view.transformed.expand([self.point.z.size()[0], -1, -1, -1], false);
        self.point.z = encoder.encode(&images, &self.point.c);
        self.latents()
    }
}
