//! Image files to what the generator is compared with, and back. Pure: bytes in, plain numbers out.
//!
//! Reads JPEG and PNG, told apart by their content, and refuses whatever is not whole: half an image would be projected
//! as one with a grey half. (A JPEG that was cut and then given an end marker cannot be told from a whole one.)
//!
//! Colours become 8-bit RGB as PIL's `convert("RGB")` makes them, since that is what the authors' readers see: alpha is
//! dropped, not composited; the orientation in the EXIF data is not applied (COCO's boxes are in the stored one); colour
//! profiles are ignored; CMYK and YCCK JPEGs are taken as Adobe writes them, inverted. 16-bit samples are rounded to
//! 8 bits over the full range (where PIL clips or cuts).

use std::panic::catch_unwind;

use image::codecs::png::{PngDecoder, PngEncoder};
use image::{DynamicImage, ExtendedColorType, ImageEncoder, Limits, Rgb, RgbImage};
use proto::{Box2d, FailureReason};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};

/// Largest image that is decoded, in pixels: about 1 GB of memory in the worst case, a progressive JPEG.
pub const MAX_PIXELS: u64 = 100_000_000;

const CHANNELS: usize = 3;
const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// An image in the generator's frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// RGB in [-1, 1], channel by channel, each `resolution` x `resolution`.
    pub pixels: Vec<f32>,
    /// The object's box in pixels of `pixels`, clipped to it.
    pub bbox: Option<Box2d>,
    /// The object's pixels where they are not those of the box: one inside, zero outside, `resolution` x `resolution`.
    pub mask: Option<Vec<f32>>,
    /// The object's box in pixels of the file's image.
    pub object: Option<Box2d>,
    pub crop: Crop,
}

/// A square window of an image, in whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    pub x: u32,
    pub y: u32,
    /// The shorter side of the image.
    pub side: u32,
}

/// Why bytes are no image in the generator's frame. The caller knows the file's name and adds it.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("is {found}, not a JPEG or PNG image")]
    NotAnImage { found: String },
    /// Refused by its header, before memory is taken.
    #[error("is an image of {width} x {height} pixels, more than the {} megapixels allowed", MAX_PIXELS / 1_000_000)]
    TooLarge { width: u64, height: u64 },
    /// The file ends too early, contradicts itself, or uses a variant that is not read.
    #[error("cannot decode the {format} data: {problem}")]
    Broken { format: &'static str, problem: String },
    #[error("the mask {problem} (image: {width} x {height} pixels)")]
    BadMask { width: u32, height: u32, problem: String },
    #[error(
        "box (x {}, y {}, width {}, height {}) {problem} (image: {width} x {height} pixels)",
        bbox.x, bbox.y, bbox.width, bbox.height
    )]
    BadBox { bbox: Box2d, width: u32, height: u32, problem: &'static str },
}

impl CodecError {
    /// How a failure record groups it.
    pub fn reason(&self) -> FailureReason {
        match self {
            CodecError::BadBox { .. } => FailureReason::BadBox,
            CodecError::BadMask { .. } => FailureReason::BadMask,
            CodecError::NotAnImage { .. } | CodecError::TooLarge { .. } | CodecError::Broken { .. } => FailureReason::BadImage,
        }
    }
}

/// Decodes a file, cuts the square window and scales it to `resolution` (positive).
///
/// The window's side is the image's shorter side. The authors take the one in the middle; here it is moved along the
/// longer side, as little as is needed, until it holds the box or, if the box is longer, is filled by it.
/// Scaling is OpenCV's: `INTER_AREA` to shrink, `INTER_LINEAR` to enlarge, in floating point.
pub fn decode(bytes: &[u8], bbox: Option<Box2d>, resolution: u32) -> Result<Decoded, CodecError> {
    frame(&read(bytes)?, bbox, None, resolution)
}

/// Cuts and scales an image that is read already, as `decode`. With a `mask` the window holds the mask's box, and a pixel of the
/// result is inside if at least half of it is.
pub fn frame(photo: &Photo, bbox: Option<Box2d>, mask: Option<&Bitmap>, resolution: u32) -> Result<Decoded, CodecError> {
    let (width, height) = photo.dimensions();
    let object = match mask {
        Some(mask) => {
            let bad = |problem: String| CodecError::BadMask { width, height, problem };
            if (mask.width, mask.height) != (width, height) {
                return Err(bad(format!("is {} x {} pixels", mask.width, mask.height)));
            }
            Some(mask.extent().ok_or_else(|| bad("has no pixel inside (in a file: none that is at least half bright)".into()))?)
        }
        None => bbox,
    };
    let visible = object.map(|b| clip(b, width, height)).transpose()?;
    let side = width.min(height);
    let crop = Crop {
        x: window_start(width, side, visible.map(|b| (b.x, b.x + b.width))),
        y: window_start(height, side, visible.map(|b| (b.y, b.y + b.height))),
        side,
    };
    let colours = resize(photo, CHANNELS, width, crop, resolution);
    let pixels = colours.into_iter().map(|v| v / 127.5 - 1.0).collect();
    let mut framed = Decoded { pixels, bbox: visible.map(|b| to_window(b, crop, resolution)), mask: None, object, crop };
    if let Some(mask) = mask {
        let covered = resize(&mask.inside, 1, width, crop, resolution);
        let inside: Vec<u8> = covered.into_iter().map(|v| u8::from(v >= 0.5)).collect();
        let small = Bitmap { width: resolution, height: resolution, inside };
        if !mask.touches(crop) {
            let problem = "has no pixel in the square window around its box: cut the image".into();
            return Err(CodecError::BadMask { width, height, problem });
        }
        // An object that covers less than half of every pixel keeps its box; one that fills its box needs no mask.
        if let Some(extent) = small.extent() {
            framed.bbox = Some(extent);
            let filled = small.inside.iter().map(|&v| u64::from(v)).sum::<u64>() as f64 == extent.width * extent.height;
            framed.mask = (!filled).then(|| small.inside.into_iter().map(f32::from).collect());
        }
    }
    Ok(framed)
}

/// A mask file's pixels: what is at least half bright is inside.
pub fn read_mask(bytes: &[u8]) -> Result<Bitmap, CodecError> {
    let photo = read(bytes)?;
    let bright = |rgb: &Rgb<u8>| u8::from(rgb.0.iter().map(|&v| u32::from(v)).sum::<u32>() >= 3 * 128);
    Ok(Bitmap { width: photo.width(), height: photo.height(), inside: photo.pixels().map(bright).collect() })
}

/// An 8-bit RGB PNG of `pixels`: RGB in [-1, 1], channel by channel, each `size` x `size`. Values beyond are clipped.
pub fn encode_png(pixels: &[f32], size: u32) -> Vec<u8> {
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&bytes(pixels, size), size, size, ExtendedColorType::Rgb8)
        .expect("writing to memory cannot fail, and the buffer has the stated size");
    png
}

/// Interleaved 8-bit RGB of such pixels.
pub(crate) fn bytes(pixels: &[f32], size: u32) -> Vec<u8> {
    let plane = size as usize * size as usize;
    assert_eq!(pixels.len(), CHANNELS * plane, "pixels of a {size} x {size} RGB image");
    // The cast saturates, and takes NaN to 0.
    let byte = |value: f32| ((value + 1.0) * 127.5).round() as u8;
    (0..plane).flat_map(|i| (0..CHANNELS).map(move |c| byte(pixels[c * plane + i]))).collect()
}

/// The pixels of an image file.
pub type Photo = RgbImage;

/// Which pixels of an image are an object's.
#[derive(Clone, Debug, PartialEq)]
pub struct Bitmap {
    pub width: u32,
    pub height: u32,
    /// One inside, zero outside, row by row.
    pub inside: Vec<u8>,
}

impl Bitmap {
    /// Whether anything is inside in the window.
    fn touches(&self, crop: Crop) -> bool {
        let (left, side) = (crop.x as usize, crop.side as usize);
        let rows = self.inside.chunks(self.width as usize).skip(crop.y as usize).take(side);
        rows.flat_map(|row| &row[left..left + side]).any(|&v| v != 0)
    }

    /// The smallest box that holds what is inside; `None`: nothing is.
    pub fn extent(&self) -> Option<Box2d> {
        let width = self.width as usize;
        let rows: Vec<&[u8]> = self.inside.chunks(width).collect();
        let filled = |row: &&[u8]| row.iter().any(|&v| v != 0);
        let (top, bottom) = (rows.iter().position(filled)?, rows.iter().rposition(filled)?);
        let within = |x: &usize| rows[top..=bottom].iter().any(|row| row[*x] != 0);
        let (left, right) = ((0..width).find(within)?, (0..width).rev().find(within)?);
        let [x, y, width, height] = [left, top, right + 1 - left, bottom + 1 - top].map(|v| v as f64);
        Some(Box2d { x, y, width, height })
    }
}

/// The pixels of a JPEG or PNG file.
pub fn read(bytes: &[u8]) -> Result<Photo, CodecError> {
    let is_png = bytes.starts_with(PNG_SIGNATURE);
    if !is_png && !bytes.starts_with(b"\xff\xd8") {
        return Err(CodecError::NotAnImage { found: describe(bytes) });
    }
    // The decoders are not ours: a bug that one file finds in them must not end the worker.
    catch_unwind(|| if is_png { read_png(bytes) } else { read_jpeg(bytes) }).unwrap_or_else(|_| {
        let format = if is_png { "PNG" } else { "JPEG" };
        Err(CodecError::Broken { format, problem: "the decoder panicked".into() })
    })
}

fn read_jpeg(bytes: &[u8]) -> Result<Photo, CodecError> {
    let broken = |problem: String| CodecError::Broken { format: "JPEG", problem };
    // Not strict, the decoder would paint what is missing grey.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| broken(e.to_string()))?;
    let (width, height) = decoder.dimensions().expect("headers are decoded");
    check_size(width as u64, height as u64, "JPEG")?;
    if !jpeg_has_end(bytes) {
        return Err(broken("the file ends before the image (truncated)".into()));
    }
    let samples = decoder.decode().map_err(|e| broken(e.to_string()))?;
    if samples.len() != width * height * CHANNELS {
        return Err(broken("its colours are neither grey, RGB, YCbCr, CMYK nor YCCK".into()));
    }
    Ok(Photo::from_raw(width as u32, height as u32, samples).expect("three bytes for each pixel"))
}

/// Whether the end marker follows on complete segments and scans.
fn jpeg_has_end(bytes: &[u8]) -> bool {
    let mut at = 2;
    // Between segments, and in entropy-coded data, every 0xff that is not followed by one of these starts a marker.
    let is_data = |b: u8| matches!(b, 0x00 | 0xd0..=0xd7 | 0xff);
    while let Some(&[first, second]) = bytes.get(at..at + 2) {
        if first != 0xff || is_data(second) {
            at += 1;
            continue;
        }
        match second {
            0xd9 => return true,
            0x01 | 0xd8 => at += 2,
            _ => match bytes.get(at + 2..at + 4) {
                Some(&[high, low]) => at += 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
        }
    }
    false
}

fn read_png(bytes: &[u8]) -> Result<Photo, CodecError> {
    let broken = |problem: String| CodecError::Broken { format: "PNG", problem };
    let truncated = || broken("the file ends before the image (truncated)".into());
    let number = |at: usize| -> Option<u32> { Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
    // The first chunk is the header, and starts with the size.
    let (width, height) = (number(16).ok_or_else(truncated)?, number(20).ok_or_else(truncated)?);
    check_size(width.into(), height.into(), "PNG")?;
    if !png_has_end(bytes) {
        return Err(truncated());
    }
    let mut limits = Limits::no_limits();
    // Eight bytes a pixel (16-bit RGBA), and some for profiles and text.
    limits.max_alloc = Some(8 * MAX_PIXELS + (64 << 20));
    let decoder = PngDecoder::with_limits(std::io::Cursor::new(bytes), limits).map_err(|e| broken(innermost(&e)))?;
    Ok(DynamicImage::from_decoder(decoder).map_err(|e| broken(innermost(&e)))?.into_rgb8())
}

/// Whether the end chunk follows on complete chunks.
fn png_has_end(bytes: &[u8]) -> bool {
    let mut rest = &bytes[PNG_SIGNATURE.len()..];
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let chunk = 4 + u32::from_be_bytes(*length) as usize + 4;
        match after.get(chunk..) {
            None => return false,
            Some(_) if after.starts_with(b"IEND") => return true,
            Some(next) => rest = next,
        }
    }
    false
}

fn check_size(width: u64, height: u64, format: &'static str) -> Result<(), CodecError> {
    if width == 0 || height == 0 {
        return Err(CodecError::Broken { format, problem: format!("its size is {width} x {height} pixels") });
    }
    if width * height > MAX_PIXELS {
        return Err(CodecError::TooLarge { width, height });
    }
    Ok(())
}

/// The cause, without the wrapper that repeats the format's name.
fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

/// What a file that is neither JPEG nor PNG looks like.
fn describe(bytes: &[u8]) -> String {
    let brand = bytes.get(4..12).unwrap_or_default();
    let known: [(bool, &str); 14] = [
        (bytes.is_empty(), "an empty file"),
        (bytes.starts_with(b"GIF8"), "a GIF image"),
        (bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP"), "a WebP image"),
        (bytes.starts_with(b"BM"), "a BMP image"),
        (bytes.starts_with(b"II*\0") || bytes.starts_with(b"MM\0*"), "a TIFF image"),
        (brand.starts_with(b"ftypavi"), "an AVIF image"),
        (brand.starts_with(b"ftyphei") || brand == b"ftypmif1", "a HEIC image"),
        (bytes.starts_with(b"\xff\x0a") || brand == b"JXL \r\n\x87\n", "a JPEG XL image"),
        (brand == b"jP  \r\n\x87\n", "a JPEG 2000 image"),
        (bytes.starts_with(b"%PDF"), "a PDF document"),
        (bytes.starts_with(b"PK\x03\x04"), "a ZIP archive"),
        (bytes.starts_with(b"\x1f\x8b"), "gzip data"),
        (bytes.starts_with(b"version https://git-lfs"), "a Git LFS pointer (git lfs pull was not run)"),
        (!bytes.is_empty() && bytes.iter().all(|&b| b == 0), "a file of zeros"),
    ];
    if let Some((_, name)) = known.iter().find(|(matches, _)| *matches) {
        return (*name).to_owned();
    }
    if std::str::from_utf8(bytes).is_ok_and(|t| t.chars().all(|c| !c.is_control() || c.is_whitespace())) {
        return "a text file".to_owned();
    }
    let hex: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
    format!("a file of unknown kind (it starts with {})", hex.join(" "))
}

/// The part of the box inside the image.
fn clip(bbox: Box2d, width: u32, height: u32) -> Result<Box2d, CodecError> {
    let bad = |problem| CodecError::BadBox { bbox, width, height, problem };
    if ![bbox.x, bbox.y, bbox.width, bbox.height].iter().all(|v| v.is_finite()) {
        return Err(bad("is not finite"));
    }
    if bbox.width <= 0.0 || bbox.height <= 0.0 {
        return Err(bad("has no area"));
    }
    let (left, right) = (bbox.x.max(0.0), (bbox.x + bbox.width).min(width.into()));
    let (top, bottom) = (bbox.y.max(0.0), (bbox.y + bbox.height).min(height.into()));
    if left >= right || top >= bottom {
        return Err(bad("has no area inside the image"));
    }
    Ok(Box2d { x: left, y: top, width: right - left, height: bottom - top })
}

/// Where the window of `side` pixels starts along an axis of `length` pixels; `object`: interval that it should hold.
fn window_start(length: u32, side: u32, object: Option<(f64, f64)>) -> u32 {
    let middle = (length - side) / 2;
    let Some((start, end)) = object else { return middle };
    // Between these two, as much of the object as can be is in the window; the order depends on which is longer.
    let (one, other) = (start, end - f64::from(side));
    let (low, high) = (one.min(other).ceil(), one.max(other).floor());
    let best = if low > high { ((one + other) / 2.0).round() } else { f64::from(middle).clamp(low, high) };
    best.clamp(0.0, f64::from(length - side)) as u32
}

/// A box of the image in pixels of the scaled window.
fn to_window(bbox: Box2d, crop: Crop, resolution: u32) -> Box2d {
    let (side, target) = (f64::from(crop.side), f64::from(resolution));
    let along = |start: f64, length: f64, origin: u32| {
        let edge = |v: f64| (v - f64::from(origin)).clamp(0.0, side) * target / side;
        (edge(start), edge(start + length))
    };
    let (left, right) = along(bbox.x, bbox.width, crop.x);
    let (top, bottom) = along(bbox.y, bbox.height, crop.y);
    Box2d { x: left, y: top, width: right - left, height: bottom - top }
}

/// The window of interleaved samples of an image `width` wide, channel by channel, in their units. The same weights along both
/// axes, one axis after the other.
fn resize(samples: &[u8], channels: usize, width: u32, crop: Crop, resolution: u32) -> Vec<f32> {
    let (side, size) = (crop.side as usize, resolution as usize);
    let taps: Vec<Taps> = (0..resolution).map(|i| Taps::new(i, crop.side, resolution)).collect();
    let row_length = width as usize * channels;
    let mut rows = vec![0f32; side * size * channels];
    for (y, row) in rows.chunks_exact_mut(size * channels).enumerate() {
        let from = (crop.y as usize + y) * row_length + crop.x as usize * channels;
        let source = &samples[from..from + side * channels];
        for (taps, pixel) in taps.iter().zip(row.chunks_exact_mut(channels)) {
            for (weight, from) in taps.weights.iter().zip(source[taps.first * channels..].chunks_exact(channels)) {
                pixel.iter_mut().zip(from).for_each(|(sum, &v)| *sum += weight * f32::from(v));
            }
        }
    }
    let mut pixels = vec![0f32; channels * size * size];
    let mut sums = vec![0f32; size * channels];
    for (y, taps) in taps.iter().enumerate() {
        sums.fill(0.0);
        for (weight, row) in taps.weights.iter().zip(rows[taps.first * size * channels..].chunks_exact(size * channels)) {
            sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += weight * v);
        }
        for (i, sum) in sums.iter().enumerate() {
            let (x, channel) = (i / channels, i % channels);
            pixels[(channel * size + y) * size + x] = *sum;
        }
    }
    pixels
}

/// The source pixels that make one pixel of the result, along one axis.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

impl Taps {
    fn new(index: u32, source: u32, target: u32) -> Taps {
        if source == target {
            return Taps { first: index as usize, weights: vec![1.0] };
        }
        let scale = f64::from(source) / f64::from(target);
        if source > target {
            // INTER_AREA: each source pixel by how much of it the result's pixel covers.
            let (start, end) = (f64::from(index) * scale, (f64::from(index + 1) * scale).min(f64::from(source)));
            let (first, last) = (start.floor() as u32, (end.ceil() as u32).min(source));
            let overlap = |i: u32| (end.min(f64::from(i + 1)) - start.max(f64::from(i))).max(0.0);
            let weights = (first..last).map(|i| (overlap(i) / scale) as f32).collect();
            return Taps { first: first as usize, weights };
        }
        // INTER_LINEAR: pixels are at half-integer positions; the edge's pixels go on beyond it.
        let position = ((f64::from(index) + 0.5) * scale - 0.5).clamp(0.0, f64::from(source - 1));
        let (first, fraction) = (position.floor(), position.fract() as f32);
        let weights = if fraction > 0.0 { vec![1.0 - fraction, fraction] } else { vec![1.0] };
        Taps { first: first as usize, weights }
    }
}
