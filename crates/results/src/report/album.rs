//! Pictures in the page: as they are where they are small, scaled down where not.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use image::{ImageFormat, ImageReader, Limits};

use crate::html::png_url;

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Bytes of a PNG above which it is scaled down.
const PNG_LIMIT: usize = 12 * 1024;
/// Pixels of the longer side of a picture that was scaled down.
const SIDE: u32 = 128;
const JPEG_QUALITY: u8 = 82;
/// Characters of all pictures together: with the curves of 250 images the file stays below 20 MB.
const BUDGET: usize = 16_000_000;

#[derive(Default)]
pub struct Album {
    used: usize,
    /// Pictures for which there was no room.
    pub left_out: u64,
}

pub struct Picture {
    pub url: String,
    /// Whether it was scaled down and is not the file in the store.
    pub scaled: bool,
}

impl Album {
    /// `None` if `png` is not a PNG, or there is no room.
    pub fn embed(&mut self, png: &[u8]) -> Option<Picture> {
        if !png.starts_with(PNG_SIGNATURE) {
            return None;
        }
        let picture = if png.len() <= PNG_LIMIT {
            Picture { url: png_url(png), scaled: false }
        } else {
            Picture { url: format!("data:image/jpeg;base64,{}", BASE64.encode(thumbnail(png)?)), scaled: true }
        };
        if self.used + picture.url.len() > BUDGET {
            self.left_out += 1;
            return None;
        }
        self.used += picture.url.len();
        Some(picture)
    }
}

fn thumbnail(png: &[u8]) -> Option<Vec<u8>> {
    let mut reader = ImageReader::with_format(Cursor::new(png), ImageFormat::Png);
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(8192), Some(8192));
    reader.limits(limits);
    let mut image = reader.decode().ok()?;
    if image.width().max(image.height()) > SIDE {
        image = image.resize(SIDE, SIDE, FilterType::Triangle);
    }
    let mut jpeg = Vec::new();
    image.to_rgb8().write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY)).ok()?;
    Some(jpeg)
}
