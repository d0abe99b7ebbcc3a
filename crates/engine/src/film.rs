//! Pictures in motion, and sheets of them: frames to an animated GIF or WebP or an MP4, or side by side with labels.
//!
//! Small frames are enlarged by whole factors, without smoothing. A WebP is exact. A GIF has at most 256 colours a frame, and times
//! of whole hundredths of a second. An MP4 (H.264) has half the resolution in colour, of which enlarged pixels show nothing, and is
//! off by about 1 % otherwise.

use std::error::Error;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use font8x8::UnicodeFonts;
use image::codecs::gif::{GifEncoder, Repeat};
use image::codecs::webp::WebPEncoder;
use image::imageops::{self, FilterType};
use image::{Delay, DynamicImage, ExtendedColorType, ImageError, Rgb, RgbImage};
use openh264::OpenH264API;
use openh264::encoder::{Encoder, EncoderConfig, FrameType, RateControlMode, VuiConfig};
use openh264::formats::{RgbSliceU8, YUVBuffer};
use shiguredo_mp4::TrackKind;
use shiguredo_mp4::bitstream::h264::{
    H264NalUnitType, H264SampleEntryConfig, LengthSize, build_avc1_box_from_annexb, parse_annexb_nal_units,
};
use shiguredo_mp4::boxes::SampleEntry;
use shiguredo_mp4::mux::{Mp4FileMuxer, Mp4FileMuxerOptions, Sample, estimate_maximum_moov_box_size};

use crate::codec;

pub type Frame = RgbImage;

/// Pixels that the longer side of a film is enlarged to, or a little less.
const FILM: u32 = 256;
/// The same in a sheet.
const CELL: u32 = 128;
/// Pixels between the parts of a sheet.
const GAP: u32 = 4;
const MILLIS_PER_SECOND: NonZeroU32 = NonZeroU32::new(1000).unwrap();
/// Width and height of a letter in pixels; each of the font's 8 rows is drawn twice.
const LETTER: (u32, u32) = (8, 16);
const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([0, 0, 0]);

/// A file format of films.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Any viewer shows it.
    Gif,
    /// Without loss; any browser shows it.
    WebP,
    /// Any player and presentation shows it.
    Mp4,
}

impl Format {
    pub fn of(path: &Path) -> Result<Format, FilmError> {
        match path.extension().map(|e| e.to_ascii_lowercase()).as_deref().and_then(|e| e.to_str()) {
            Some("gif") => Ok(Format::Gif),
            Some("webp") => Ok(Format::WebP),
            Some("mp4") => Ok(Format::Mp4),
            _ => Err(FilmError::Extension { path: path.to_owned() }),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FilmError {
    #[error("cannot write a film to {}: its name must end in .gif, .webp or .mp4", path.display())]
    Extension { path: PathBuf },
    /// No frames, or none that could be shown.
    #[error("cannot write a film without pictures")]
    Empty,
    #[error("frame {index} is {} x {} pixels, the first one {} x {}", found.0, found.1, first.0, first.1)]
    Sizes { index: usize, found: (u32, u32), first: (u32, u32) },
    /// The encoder refuses the enlarged frames: they are too large (the limit is 65535 for a GIF, 16384 for a WebP, 3840 x 2160 for an MP4).
    #[error("cannot encode frames of {width} x {height} pixels")]
    Encode { width: u32, height: u32, source: Box<dyn Error + Send + Sync> },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// `pixels`: RGB in [-1, 1], channel by channel, each `size` x `size`. Values beyond are clipped.
pub fn frame(pixels: &[f32], size: u32) -> Frame {
    Frame::from_raw(size, size, codec::bytes(pixels, size)).expect("three bytes for each pixel")
}

/// Writes a film; a GIF and a WebP repeat for ever. The format follows from the path's extension.
pub fn write(path: &Path, frames: &[Frame], millis_per_frame: u32) -> Result<(), FilmError> {
    let film = encode(Format::of(path)?, frames, millis_per_frame)?;
    std::fs::write(path, film).map_err(|source| FilmError::Write { path: path.to_owned(), source })
}

/// The bytes of such a film.
pub fn encode(format: Format, frames: &[Frame], millis_per_frame: u32) -> Result<Vec<u8>, FilmError> {
    let first = frames.first().ok_or(FilmError::Empty)?.dimensions();
    if first.0 == 0 || first.1 == 0 {
        return Err(FilmError::Empty);
    }
    if let Some((index, other)) = frames.iter().enumerate().find(|(_, f)| f.dimensions() != first) {
        return Err(FilmError::Sizes { index, found: other.dimensions(), first });
    }
    let frames: Vec<Frame> = frames.iter().map(|f| enlarge(f, FILM)).collect();
    let (width, height) = frames[0].dimensions();
    let film = match format {
        Format::Gif => gif(frames, millis_per_frame).map_err(Into::into),
        Format::WebP => webp(&frames, millis_per_frame).map_err(Into::into),
        Format::Mp4 => mp4(&frames, millis_per_frame),
    };
    film.map_err(|source| FilmError::Encode { width, height, source })
}

/// By the largest whole factor that keeps the longer side within `side`; never smaller.
fn enlarge(frame: &Frame, side: u32) -> Frame {
    let (width, height) = frame.dimensions();
    let factor = (side / width.max(height).max(1)).max(1);
    imageops::resize(frame, factor * width, factor * height, FilterType::Nearest)
}

fn gif(frames: Vec<Frame>, millis: u32) -> Result<Vec<u8>, ImageError> {
    let mut film = Vec::new();
    let mut encoder = GifEncoder::new_with_speed(&mut film, 10);
    encoder.set_repeat(Repeat::Infinite)?;
    let delay = Delay::from_numer_denom_ms(millis, 1);
    let timed = |frame| image::Frame::from_parts(DynamicImage::ImageRgb8(frame).into_rgba8(), 0, 0, delay);
    encoder.encode_frames(frames.into_iter().map(timed))?;
    drop(encoder);
    Ok(film)
}

/// The container of <https://developers.google.com/speed/webp/docs/riff_container>, around frames that are WebP images each:
/// the encoder makes no animations.
fn webp(frames: &[Frame], millis: u32) -> Result<Vec<u8>, ImageError> {
    const ANIMATION: u8 = 0b10;
    /// Blending, the other way, rounds even opaque pixels.
    const REPLACE: u8 = 0b10;
    /// Bytes of `RIFF`, the size and `WEBP`, before the one chunk of a single image.
    const HEAD: usize = 12;
    let u24 = |value: u32| value.to_le_bytes().into_iter().take(3);
    let chunk = |name: &[u8; 4], data: &[u8]| -> Vec<u8> {
        let size = u32::try_from(data.len()).expect("a film of less than 4 GB");
        let padding = vec![0; data.len() % 2];
        [&name[..], &size.to_le_bytes(), data, &padding].concat()
    };
    let (width, height) = frames[0].dimensions();
    let size: Vec<u8> = u24(width - 1).chain(u24(height - 1)).collect();

    let mut chunks = b"WEBP".to_vec();
    chunks.extend(chunk(b"VP8X", &[&[ANIMATION, 0, 0, 0], &size[..]].concat()));
    // Background colour, and repetitions: no end.
    chunks.extend(chunk(b"ANIM", &[0; 6]));
    for frame in frames {
        let mut image = Vec::new();
        WebPEncoder::new_lossless(&mut image).encode(frame, width, height, ExtendedColorType::Rgb8)?;
        let duration: Vec<u8> = u24(millis.min(0xff_ffff)).collect();
        // At the origin, in the place of what was there.
        chunks.extend(chunk(b"ANMF", &[&[0; 6], &size[..], &duration, &[REPLACE], &image[HEAD..]].concat()));
    }
    Ok(chunk(b"RIFF", &chunks))
}

/// One track of H.264, the index in front so that it plays while it loads.
fn mp4(frames: &[Frame], millis: u32) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
    // The same quality for every frame, whatever rate that needs; and the colours that the conversion makes.
    let config = EncoderConfig::new().rate_control_mode(RateControlMode::Off).vui(VuiConfig::bt601());
    let mut encoder = Encoder::with_api_config(OpenH264API::from_source(), config)?;
    let reserved_moov_box_size = estimate_maximum_moov_box_size(&[frames.len()]);
    let mut muxer = Mp4FileMuxer::with_options(Mp4FileMuxerOptions { reserved_moov_box_size, ..Default::default() })?;
    let mut film = muxer.initial_boxes_bytes().to_vec();
    for (index, frame) in frames.iter().enumerate() {
        let even = even(frame);
        let size = (even.width() as usize, even.height() as usize);
        let encoded = encoder.encode(&YUVBuffer::from_rgb8_source(RgbSliceU8::new(&even, size)))?;
        let keyframe = matches!(encoded.frame_type(), FrameType::IDR);
        let encoded = encoded.to_vec();
        // The parameter sets are for the index.
        let config = H264SampleEntryConfig { length_size: LengthSize::FourBytes };
        let sample_entry =
            (index == 0).then(|| build_avc1_box_from_annexb(&encoded, &config)).transpose()?.map(SampleEntry::Avc1);
        let data_offset = film.len() as u64;
        for unit in parse_annexb_nal_units(&encoded)? {
            if !matches!(unit.nal_unit_type, H264NalUnitType::Sps | H264NalUnitType::Pps) {
                film.extend((unit.data.len() as u32).to_be_bytes());
                film.extend(unit.data);
            }
        }
        muxer.append_sample(&Sample {
            track_kind: TrackKind::Video,
            sample_entry,
            keyframe,
            timescale: MILLIS_PER_SECOND,
            duration: millis,
            composition_time_offset: None,
            data_offset,
            data_size: film.len() - data_offset as usize,
        })?;
    }
    for (offset, boxes) in muxer.finalize()?.offset_and_bytes_pairs() {
        let (start, end) = (offset as usize, offset as usize + boxes.len());
        film.resize(film.len().max(end), 0);
        film[start..end].copy_from_slice(boxes);
    }
    Ok(film)
}

/// H.264 has no odd sizes: the last column or row is there twice.
fn even(frame: &Frame) -> Frame {
    let (width, height) = frame.dimensions();
    Frame::from_fn(width.next_multiple_of(2), height.next_multiple_of(2), |x, y| {
        *frame.get_pixel(x.min(width - 1), y.min(height - 1))
    })
}

/// Rows of frames with a label each, under the labels of the columns (none: no such line). Rows may differ in length, frames in
/// size. A column's label is cut where its column ends.
pub fn contact_sheet(columns: &[&str], rows: &[(&str, Vec<Frame>)]) -> RgbImage {
    let rows: Vec<(&str, Vec<Frame>)> =
        rows.iter().map(|(label, frames)| (*label, frames.iter().map(|f| enlarge(f, CELL)).collect())).collect();
    let frames = || rows.iter().flat_map(|(_, frames)| frames);
    let cell = (frames().map(|f| f.width()).max().unwrap_or(0), frames().map(|f| f.height()).max().unwrap_or(0));
    let letters = rows.iter().map(|(label, _)| label.chars().count() as u32).max().unwrap_or(0);
    let length = rows.iter().map(|(_, frames)| frames.len()).max().unwrap_or(0).max(columns.len()) as u32;
    let left = if letters == 0 { GAP } else { 2 * GAP + letters * LETTER.0 };
    let top = if columns.is_empty() { GAP } else { 2 * GAP + LETTER.1 };
    let x = |column: usize| left + column as u32 * (cell.0 + GAP);
    let y = |row: usize| top + row as u32 * (cell.1.max(LETTER.1) + GAP);

    let mut sheet = RgbImage::from_pixel(left + length * (cell.0 + GAP), y(rows.len()), PAPER);
    for (column, label) in columns.iter().enumerate() {
        let fit = (cell.0 / LETTER.0) as usize;
        draw(&mut sheet, label.chars().take(fit), x(column), GAP);
    }
    for (row, (label, frames)) in rows.iter().enumerate() {
        draw(&mut sheet, label.chars(), GAP, y(row) + (cell.1.max(LETTER.1) - LETTER.1) / 2);
        for (column, frame) in frames.iter().enumerate() {
            imageops::replace(&mut sheet, frame, x(column).into(), y(row).into());
        }
    }
    sheet
}

/// Text from its upper left corner; letters that the font lacks become question marks.
fn draw(sheet: &mut RgbImage, text: impl Iterator<Item = char>, x: u32, y: u32) {
    let glyph = |c: char| font8x8::BASIC_FONTS.get(c).or_else(|| font8x8::LATIN_FONTS.get(c));
    for (i, letter) in text.enumerate() {
        let rows = glyph(letter).or_else(|| glyph('?')).expect("the font has a question mark");
        for (dx, dy) in (0..LETTER.1).flat_map(|dy| (0..LETTER.0).map(move |dx| (dx, dy))) {
            if rows[dy as usize / 2] >> dx & 1 == 1 {
                sheet.put_pixel(x + i as u32 * LETTER.0 + dx, y + dy, INK);
            }
        }
    }
}
