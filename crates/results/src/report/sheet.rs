//! Pictures in lines on one sheet, such as targets and what some methods made of them (the paper's Figure 6).

use std::io::Cursor;

use image::imageops::{FilterType, overlay, resize};
use image::{ImageFormat, ImageReader, Rgb, RgbImage};

/// Pixels of a picture's side: small ones are enlarged by whole numbers, so that their pixels can be seen.
const SIDE: u32 = 64;
/// Pixels above which it is scaled down.
const MOST: u32 = 128;
const GAP: u32 = 4;
/// Left of them, for the number of the line.
const MARGIN: u32 = 30;
const GROUND: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([29, 33, 38]);
/// Three by five dots of each digit, a row in three bits.
const DIGITS: [[u8; 5]; 10] = [
    [7, 5, 5, 5, 7],
    [2, 6, 2, 2, 7],
    [7, 1, 7, 4, 7],
    [7, 1, 7, 1, 7],
    [5, 5, 7, 1, 1],
    [7, 4, 7, 1, 7],
    [7, 4, 7, 5, 7],
    [7, 1, 1, 1, 1],
    [7, 5, 7, 5, 7],
    [7, 5, 7, 1, 7],
];
const DOT: u32 = 2;

/// A PNG of the pictures (PNG, square and all of one size) of each line, the lines numbered from 1. What cannot be decoded is left
/// blank.
pub fn sheet(lines: &[Vec<Vec<u8>>]) -> Vec<u8> {
    let pictures: Vec<Vec<Option<RgbImage>>> = lines.iter().map(|line| line.iter().map(|png| picture(png)).collect()).collect();
    let side = pictures.iter().flatten().flatten().map(RgbImage::width).max().unwrap_or(SIDE);
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0) as u32;
    let (width, height) = (MARGIN + columns * (side + GAP), GAP + lines.len() as u32 * (side + GAP));
    let mut sheet = RgbImage::from_pixel(width, height, GROUND);
    for (row, line) in (0..).zip(&pictures) {
        let top = GAP + row * (side + GAP);
        number(&mut sheet, row + 1, top + side / 2);
        for (column, picture) in (0..).zip(line) {
            if let Some(picture) = picture {
                overlay(&mut sheet, picture, i64::from(MARGIN + column * (side + GAP)), top.into());
            }
        }
    }
    png(&sheet)
}

pub(super) fn png(image: &RgbImage) -> Vec<u8> {
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png).expect("a Vec takes every write");
    png.into_inner()
}

fn picture(png: &[u8]) -> Option<RgbImage> {
    let image = ImageReader::with_format(Cursor::new(png), ImageFormat::Png).decode().ok()?.to_rgb8();
    let side = image.width().max(1);
    Some(match side {
        side if side > MOST => resize(&image, MOST, MOST, FilterType::Triangle),
        side => {
            let side = side * SIDE.div_ceil(side);
            resize(&image, side, side, FilterType::Nearest)
        }
    })
}

/// Writes a number in the margin, around the height `middle`.
fn number(sheet: &mut RgbImage, number: u32, middle: u32) {
    let top = middle.saturating_sub(5 * DOT / 2);
    for (place, digit) in (0..).zip(number.to_string().bytes()) {
        for (y, bits) in (0..).zip(DIGITS[usize::from(digit - b'0')]) {
            for x in (0..3).filter(|x| bits >> (2 - x) & 1 == 1) {
                let (left, top) = (GAP + (4 * place + x) * DOT, top + y * DOT);
                for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                    sheet.put_pixel(left + dx, top + dy, INK);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(side: u32, grey: u8) -> Vec<u8> {
        png(&RgbImage::from_pixel(side, side, Rgb([grey; 3])))
    }

    #[test]
    fn pictures_stand_in_lines_with_their_numbers() {
        let lines: Vec<Vec<Vec<u8>>> =
            (0..12).map(|line| vec![square(32, 10 * line), square(32, 200), b"none".to_vec()]).collect();
        let drawn = image::load_from_memory(&sheet(&lines)).expect("a PNG").to_rgb8();
        assert_eq!(drawn.dimensions(), (MARGIN + 3 * 68, GAP + 12 * 68));
        let at = |line: u32, column: u32| drawn.get_pixel(MARGIN + column * 68 + 32, GAP + line * 68 + 32).0[0];
        assert_eq!([at(0, 0), at(11, 0), at(11, 1), at(11, 2)], [0, 110, 200, 255]);
        let inked = |line: u32| {
            let (from, to) = (GAP + line * 68, GAP + line * 68 + 64);
            (from..to).flat_map(|y| (0..MARGIN).map(move |x| (x, y))).filter(|&(x, y)| *drawn.get_pixel(x, y) == INK).count()
        };
        // 1 has 8 dots and 2 has 11, of four pixels each.
        assert_eq!([inked(0), inked(1), inked(11)], [32, 44, 76]);
    }

    #[test]
    fn large_pictures_are_scaled_down() {
        let drawn = image::load_from_memory(&sheet(&[vec![square(256, 7)]])).expect("a PNG");
        assert_eq!((drawn.width(), drawn.height()), (MARGIN + 132, GAP + 132));
    }
}
