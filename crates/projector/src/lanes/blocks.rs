//! Cuts requests into blocks, puts blocks into batches, and joins the responses of blocks.

use super::request::{Request, Response, Transforms};
use crate::target::Target;

/// From this number of lanes on a request has two blocks at least, so that one image alone keeps two cores busy.
const TWO_BLOCKS: usize = 6;

/// Cuts a request into blocks of at most `max` lanes and of equal size, the last one padded with its last lane.
pub(super) fn cut(request: &Request, max: usize) -> Vec<Request> {
    let lanes = request.z.len();
    let blocks = lanes.div_ceil(max).max(if lanes < TWO_BLOCKS { 1 } else { 2 });
    let size = lanes.div_ceil(blocks);
    (0..blocks)
        .map(|b| {
            let index: Vec<usize> = (b * size..(b + 1) * size).map(|i| i.min(lanes - 1)).collect();
            let pick = |rows: &[Vec<f32>]| index.iter().map(|&i| rows[i].clone()).collect::<Vec<_>>();
            Request {
                z: pick(&request.z),
                c: request.c.as_deref().map(pick),
                transforms: match &request.transforms {
                    Transforms::Each(each) => Transforms::Each(index.iter().map(|&i| each[i].clone()).collect()),
                    other => other.clone(),
                },
                work: request.work,
                adam: request.adam.as_ref().map(|adam| adam.select(&index)),
                exact: request.exact,
            }
        })
        .collect()
}

/// One block of an image, and its index among all pieces of a call.
pub(super) struct Piece {
    pub(super) index: usize,
    pub(super) target: Target,
    pub(super) request: Request,
}

/// Puts pieces of the same work into batches of at most `block` lanes; where there are enough pieces, every device gets a batch.
pub(super) fn together(pieces: Vec<Piece>, block: usize, devices: usize) -> Vec<Vec<Piece>> {
    let lanes: usize = pieces.iter().map(|piece| piece.request.z.len()).sum();
    let most = block.min(lanes.div_ceil(devices));
    let mut batches: Vec<Vec<Piece>> = Vec::new();
    for piece in pieces {
        let fits = |batch: &&mut Vec<Piece>| {
            let lanes: usize = batch.iter().map(|piece| piece.request.z.len()).sum();
            batch[0].request.fits_with(&piece.request) && lanes + piece.request.z.len() <= most
        };
        match batches.iter_mut().find(fits) {
            Some(batch) => batch.push(piece),
            None => batches.push(vec![piece]),
        }
    }
    batches
}

/// Joins the responses of a request's blocks and drops the padding.
pub(super) fn join(blocks: Vec<Response>, lanes: usize) -> Response {
    let mut all = Response::default();
    blocks.into_iter().for_each(|block| all.extend(block));
    all.take(lanes)
}

impl Response {
    fn extend(&mut self, other: Response) {
        self.z.extend(other.z);
        self.c.extend(other.c);
        self.transforms.extend(other.transforms);
        self.loss.extend(other.loss);
        self.inverted.extend(other.inverted);
        self.curves.extend(other.curves);
        self.gradient.extend(other.gradient);
        self.rendered.extend(other.rendered);
        match (&mut self.adam, other.adam) {
            (Some(adam), Some(other)) => adam.extend(other),
            (adam, other) => *adam = adam.take().or(other),
        }
    }

    /// Takes off the first lanes.
    pub(super) fn take(&mut self, lanes: usize) -> Response {
        fn front<T>(rows: &mut Vec<T>, lanes: usize) -> Vec<T> {
            rows.drain(..lanes.min(rows.len())).collect()
        }
        Response {
            z: front(&mut self.z, lanes),
            c: front(&mut self.c, lanes),
            transforms: front(&mut self.transforms, lanes),
            loss: front(&mut self.loss, lanes),
            inverted: front(&mut self.inverted, lanes),
            curves: front(&mut self.curves, lanes),
            gradient: front(&mut self.gradient, lanes),
            rendered: front(&mut self.rendered, lanes),
            adam: self.adam.as_mut().map(|adam| adam.take(lanes)),
        }
    }
}
