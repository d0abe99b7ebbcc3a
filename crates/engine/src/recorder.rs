//! Films of searches (*io*): after each step what every image looks like, beside its target.

use std::path::{Path, PathBuf};

use image::imageops;
use projector::{DeviceError, Lanes, Projection, Solution};
use proto::{Stage, chain, keys};

use crate::film::{self, Frame};

/// Milliseconds of a frame, and of how many the answer is shown at the end.
const MILLIS: u32 = 80;
const LAST: usize = 20;

/// Films of the images of a batch.
pub struct Recorder {
    dir: PathBuf,
    size: u32,
    films: Vec<Film>,
}

struct Film {
    path: PathBuf,
    target: Vec<f32>,
    frames: Vec<Frame>,
}

impl Recorder {
    /// `images`: keys and pixels `[3, size, size]`. A film is at the image's place in `dir`.
    pub fn new<'a>(dir: &Path, size: u32, images: impl Iterator<Item = (&'a str, &'a [f32])>) -> Recorder {
        let film = |(image, target): (&str, &[f32])| Film {
            path: dir.join(format!("{}.webp", keys::place(image))),
            target: target.to_vec(),
            frames: vec![],
        };
        Recorder { dir: dir.to_owned(), size, films: images.map(film).collect() }
    }

    /// Adds a frame to every film after a step.
    pub fn look(&mut self, projection: &Projection, lanes: &Lanes) -> Result<(), DeviceError> {
        for (i, (film, seen)) in self.films.iter_mut().zip(projection.look(lanes)?).enumerate() {
            // Fine-tuning has no picture before it is finished.
            if let Some(pixels) = seen.filter(|_| projection.stage(i) != Some(Stage::FineTune)) {
                film.add(&pixels, self.size, 1);
            }
        }
        Ok(())
    }

    /// Adds the answers and writes the films. A film that cannot be written is only logged.
    pub fn finish<'a>(self, solutions: impl Iterator<Item = Option<&'a Solution>>) {
        for (mut film, solution) in self.films.into_iter().zip(solutions) {
            let Some(solution) = solution else { continue };
            film.add(&solution.inverted, self.size, LAST);
            if let Some(Ok(tuned)) = &solution.fine_tuned {
                film.add(&tuned.pictures.inverted, self.size, LAST);
            }
            let parent = film.path.parent().unwrap_or(&self.dir);
            let written = std::fs::create_dir_all(parent).map_err(anyhow::Error::from);
            let written = written.and_then(|()| Ok(film::write(&film.path, &film.frames, MILLIS)?));
            if let Err(error) = written {
                tracing::warn!(film = %film.path.display(), error = chain(&*error), "cannot write a film");
            }
        }
    }
}

impl Film {
    fn add(&mut self, pixels: &[f32], size: u32, times: usize) {
        let mut both = Frame::new(2 * size, size);
        imageops::replace(&mut both, &film::frame(&self.target, size), 0, 0);
        imageops::replace(&mut both, &film::frame(pixels, size), i64::from(size), 0);
        self.frames.extend(std::iter::repeat_n(both, times));
    }
}
