//! Cuts requests into blocks, puts blocks into batches, and undoes both.

use super::request::{Request, Response, Transforms, Work};
use crate::descent::AdamState;
use crate::target::Target;

/// Cuts a request into blocks of at most `max` lanes and of equal size, the last one padded with its last lane.
pub(super) fn cut(request: &Request, max: usize) -> Vec<Request> {
    let lanes = request.z.len();
    let blocks = lanes.div_ceil(max).max(1);
    let size = lanes.div_ceil(blocks);
    (0..blocks)
        .map(|b| {
            let index: Vec<usize> = (b * size..(b + 1) * size).map(|i| i.min(lanes - 1)).collect();
            let pick = |rows: &[Vec<f32>]| index.iter().map(|&i| rows[i].clone()).collect::<Vec<_>>();
            let work = match &request.work {
                Work::Descend { steps, adam, track_inverted, record } => Work::Descend {
                    steps: *steps,
                    adam: adam.as_ref().map(|a| a.select(&index)),
                    track_inverted: *track_inverted,
                    record: *record,
                },
                other => other.clone(),
            };
            Request {
                z: pick(&request.z),
                c: request.c.as_deref().map(pick),
                transforms: match &request.transforms {
                    Transforms::Each(each) => Transforms::Each(index.iter().map(|&i| each[i].clone()).collect()),
                    other => other.clone(),
                },
                work,
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
    let mut adam: Option<AdamState> = None;
    for block in blocks {
        all.z.extend(block.z);
        all.c.extend(block.c);
        all.loss.extend(block.loss);
        all.inverted.extend(block.inverted);
        all.curves.extend(block.curves);
        all.gradient.extend(block.gradient);
        all.rendered.extend(block.rendered);
        adam = match (adam, block.adam) {
            (Some(mut a), Some(b)) => {
                a.extend(b);
                Some(a)
            }
            (a, b) => a.or(b),
        };
    }
    all.z.truncate(lanes);
    all.c.truncate(lanes);
    all.loss.truncate(lanes);
    all.inverted.truncate(lanes);
    all.curves.truncate(lanes);
    all.gradient.truncate(lanes);
    all.rendered.truncate(lanes);
    if let Some(a) = &mut adam {
        a.truncate(lanes);
    }
    all.adam = adam;
    all
}

/// Cuts the response of a batch into those of its pieces, given the lanes of each.
pub(super) fn split(mut all: Response, lanes: &[usize]) -> Vec<Response> {
    if let [_] = lanes {
        return vec![all];
    }
    fn front<T>(rows: &mut Vec<T>, lanes: usize) -> Vec<T> {
        rows.drain(..lanes.min(rows.len())).collect()
    }
    let mut first = 0;
    let piece = |&n: &usize| {
        let index: Vec<usize> = (first..first + n).collect();
        first += n;
        Response {
            z: front(&mut all.z, n),
            c: front(&mut all.c, n),
            loss: front(&mut all.loss, n),
            inverted: front(&mut all.inverted, n),
            curves: front(&mut all.curves, n),
            gradient: front(&mut all.gradient, n),
            rendered: front(&mut all.rendered, n),
            adam: all.adam.as_ref().map(|adam| adam.select(&index)),
        }
    };
    lanes.iter().map(piece).collect()
}
