//! Image files in, numbers out: every kind of file that a data set has been seen to hold.

use std::collections::BTreeMap;
use std::io::Cursor;

use engine::codec::{CodecError, Crop, decode, encode_png};
use image::{DynamicImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgb, Rgba};
use proto::{Box2d, FailureReason};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

// JPEGs of 16 x 16 pixels (15 x, 15 y, 200 - 6 x - 6 y), quality 92, written by PIL; the YCCK by imagecodecs. K is 4 x.
const BASELINE: &[u8] = include_bytes!("golden/baseline.jpg");
const SUBSAMPLED: &[u8] = include_bytes!("golden/subsampled.jpg");
const PROGRESSIVE: &[u8] = include_bytes!("golden/progressive.jpg");
const GREY: &[u8] = include_bytes!("golden/grey.jpg");
const CMYK: &[u8] = include_bytes!("golden/cmyk.jpg");
const YCCK: &[u8] = include_bytes!("golden/ycck.jpg");
const JPEGS: [&[u8]; 6] = [BASELINE, SUBSAMPLED, PROGRESSIVE, GREY, CMYK, YCCK];
/// 4 x 4 pixels, two bits each; every row has the four colours of the palette, the second of which is transparent.
const PALETTE: &[u8] = include_bytes!("golden/palette.png");

/// A picture whose scaled values are known.
fn pattern(width: u32, height: u32) -> DynamicImage {
    let value = |x: u32, y: u32, c: u32| ((x * 37 + y * 91 + c * 53 + x * y * 7) % 256) as u8;
    ImageBuffer::from_fn(width, height, |x, y| Rgb([value(x, y, 0), value(x, y, 1), value(x, y, 2)])).into()
}

fn file(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("writing to memory");
    bytes.into_inner()
}

fn png(image: &DynamicImage) -> Vec<u8> {
    file(image, ImageFormat::Png)
}

fn rectangle(x: f64, y: f64, width: f64, height: f64) -> Box2d {
    Box2d { x, y, width, height }
}

/// One channel, as levels 0 to 255.
fn channel(pixels: &[f32], index: usize) -> Vec<f32> {
    let plane = pixels.len() / 3;
    pixels[index * plane..(index + 1) * plane].iter().map(|v| (v + 1.0) * 127.5).collect()
}

/// RGB levels at a point.
fn levels(bytes: &[u8], resolution: u32, (x, y): (u32, u32)) -> [f32; 3] {
    let pixels = decode(bytes, None, resolution).expect("can be decoded").pixels;
    [0, 1, 2].map(|c| channel(&pixels, c)[(y * resolution + x) as usize])
}

fn error(bytes: &[u8]) -> String {
    let error = decode(bytes, None, 32).expect_err("is refused");
    assert_eq!(error.reason(), FailureReason::BadImage);
    error.to_string()
}

fn assert_near(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance, "{i}: {a} is not {b}");
    }
}

/// `cv2.resize(pattern, interpolation=INTER_AREA or INTER_LINEAR)` on float32, OpenCV 5.0.0.
#[test]
fn scaling_is_opencvs() {
    let scaled = |from: u32, to: u32, c: usize| {
        let pixels = decode(&png(&pattern(from, from)), None, to).unwrap().pixels;
        channel(&pixels, c)
    };
    let area_11_to_4 = [
        103.1074, 119.8182, 121.719, 117.2727, 118.9917, 145.4545, 135.9504, 132.7934, 117.9504, 124.5455, 139.6033, 129.2727,
        150.7603, 141.719, 115.7521, 123.6364,
    ];
    assert_near(&scaled(11, 4, 0), &area_11_to_4, 1e-3);
    let area_12_to_4 = [
        127.2222, 145.4444, 135.2222, 125.0, 136.7778, 104.2222, 128.5556, 124.4444, 146.3333, 119.8889, 121.8889, 152.3333,
        127.4444, 107.1111, 172.1111, 123.3333,
    ];
    assert_near(&scaled(12, 4, 2), &area_12_to_4, 1e-3);
    let area_10_to_7 = [
        92.03, 142.86, 132.39, 179.45, 90.83, 113.64, 110.71, 166.98, 122.12, 102.26, 159.5, 104.1, 145.68, 136.66, 114.63,
        142.3, 174.03, 112.85, 133.59, 134.6, 103.39, 188.65, 111.3, 137.25, 130.75, 124.25, 150.2, 162.45, 129.55, 177.58,
        118.39, 148.65, 112.35, 150.44, 96.07, 92.56, 100.48, 110.8, 102.0, 129.04, 103.52, 147.28, 106.07, 125.82, 131.87,
        171.65, 139.75, 109.96, 183.47,
    ];
    assert_near(&scaled(10, 7, 1), &area_10_to_7, 1e-3);
    let linear_4_to_7 = [
        53.0, 66.2143, 87.3571, 108.5, 129.6429, 150.7857, 164.0, 85.5, 99.6071, 122.1786, 144.75, 160.7908, 131.1174, 112.5714,
        137.5, 153.0357, 177.8929, 202.75, 210.6275, 99.648, 30.2857, 189.5, 160.75, 114.75, 132.75, 150.75, 104.75, 76.0,
        223.2143, 156.7092, 50.301, 62.75, 92.1786, 121.6071, 140.0, 128.9286, 116.0969, 95.5663, 120.75, 152.4643, 184.1786,
        204.0, 70.0, 90.7143, 123.8571, 157.0, 190.1429, 223.2857, 244.0,
    ];
    assert_near(&scaled(4, 7, 1), &linear_4_to_7, 1e-3);
}

#[test]
fn an_image_of_the_right_size_is_copied_exactly() {
    let image = pattern(32, 32).to_rgb8();
    let decoded = decode(&png(&image.clone().into()), None, 32).unwrap();
    for (i, pixel) in image.pixels().enumerate() {
        for c in 0..3 {
            assert_eq!(decoded.pixels[c * 1024 + i], f32::from(pixel.0[c]) / 127.5 - 1.0);
        }
    }
    let written = encode_png(&decoded.pixels, 32);
    assert_eq!(image::load_from_memory(&written).unwrap().to_rgb8(), image);
    assert_eq!(decode(&written, None, 32).unwrap(), decoded);
}

#[test]
fn values_beyond_the_range_are_clipped_when_written() {
    let written = encode_png(&[-3.0, 7.0, f32::NAN], 1);
    assert_eq!(image::load_from_memory(&written).unwrap().to_rgb8().get_pixel(0, 0).0, [0, 255, 0]);
}

#[test]
fn the_window_is_central_and_moves_only_as_far_as_the_box_needs() {
    let (wide, tall) = (png(&pattern(100, 40)), png(&pattern(40, 101)));
    let crop = |bytes: &[u8], bbox| decode(bytes, bbox, 16).unwrap().crop;
    assert_eq!(crop(&wide, None), Crop { x: 30, y: 0, side: 40 });
    assert_eq!(crop(&tall, None), Crop { x: 0, y: 30, side: 40 });
    assert_eq!(crop(&wide, Some(rectangle(35.0, 5.0, 20.0, 20.0))).x, 30, "the box is in the middle already");
    assert_eq!(crop(&wide, Some(rectangle(10.5, 5.0, 20.0, 20.0))).x, 10, "left, to the box's edge");
    assert_eq!(crop(&wide, Some(rectangle(60.0, 5.0, 25.5, 20.0))).x, 46, "right, to the box's edge");
    assert_eq!(crop(&wide, Some(rectangle(10.3, 5.0, 39.9, 20.0))).x, 10, "as long as the window, between pixels");
    assert_eq!(crop(&tall, Some(rectangle(0.0, 95.0, 40.0, 400.0))).y, 61, "not beyond the image");
    assert_eq!(crop(&wide, Some(rectangle(0.0, 0.0, 60.0, 40.0))).x, 20, "filled by a longer box");
    assert_eq!(crop(&wide, Some(rectangle(0.0, 0.0, 90.0, 40.0))).x, 30, "filled by a longer box");
}

#[test]
fn the_box_follows_window_and_scale_and_is_clipped() {
    let wide = png(&pattern(100, 40));
    let found = |bbox| decode(&wide, Some(bbox), 20).unwrap();
    assert_eq!(found(rectangle(34.0, 6.0, 20.0, 10.0)).bbox, Some(rectangle(2.0, 3.0, 10.0, 5.0)));
    let decoded = found(rectangle(-10.0, -5.0, 30.0, 100.0));
    assert_eq!((decoded.bbox, decoded.crop.x), (Some(rectangle(0.0, 0.0, 10.0, 20.0)), 0));
    assert_eq!(found(rectangle(0.0, 0.0, 90.0, 40.0)).bbox, Some(rectangle(0.0, 0.0, 20.0, 20.0)));
    assert_eq!(decode(&wide, None, 20).unwrap().bbox, None);
}

#[test]
fn a_box_without_area_in_the_image_is_refused_with_its_numbers() {
    let image = png(&pattern(50, 40));
    let cases = [
        (rectangle(50.0, 0.0, 10.0, 10.0), "has no area inside the image"),
        (rectangle(0.0, -10.0, 10.0, 10.0), "has no area inside the image"),
        (rectangle(5.0, 5.0, 0.0, 3.0), "has no area"),
        (rectangle(5.0, 5.0, 3.0, -1.0), "has no area"),
        (rectangle(f64::NAN, 5.0, 3.0, 3.0), "is not finite"),
        (rectangle(5.0, 5.0, f64::INFINITY, 3.0), "is not finite"),
        (rectangle(-f64::MAX, 5.0, f64::MAX, 3.0), "has no area inside the image"),
    ];
    for (bbox, problem) in cases {
        let error = decode(&image, Some(bbox), 32).unwrap_err();
        assert_eq!(error.reason(), FailureReason::BadBox);
        let Box2d { x, y, width, height } = bbox;
        let expected = format!("box (x {x}, y {y}, width {width}, height {height}) {problem} (image: 50 x 40 pixels)");
        assert_eq!(error.to_string(), expected);
    }
}

/// Where the JPEGs are looked at.
const POINTS: [(u32, u32); 5] = [(0, 0), (15, 0), (0, 15), (15, 15), (7, 9)];

/// Colours as PIL 13.0.0 (libjpeg-turbo) has them after `convert("RGB")`.
#[test]
fn every_kind_of_jpeg_has_the_colours_that_pil_sees() {
    let ramp = [[1, 2, 190], [216, 5, 110], [10, 220, 110], [225, 222, 29], [105, 135, 101]];
    let cases = [
        ("baseline", BASELINE, [[2, 0, 198], [224, 0, 112], [2, 225, 110], [225, 224, 20], [105, 133, 108]]),
        ("subsampled", SUBSAMPLED, ramp),
        ("progressive", PROGRESSIVE, ramp),
        ("grey", GREY, [[23; 3], [80; 3], [145; 3], [201; 3], [122; 3]]),
        // Adobe writes both inverted: taken as they are, they would be dark where these are light.
        ("CMYK", CMYK, [[0, 0, 201], [172, 0, 84], [0, 225, 110], [172, 172, 15], [93, 120, 93]]),
        ("YCCK", YCCK, [[1, 2, 190], [164, 3, 83], [10, 220, 111], [172, 170, 24], [93, 120, 90]]),
    ];
    for (name, jpeg, expected) in cases {
        for (point, expected) in POINTS.into_iter().zip(expected) {
            let found = levels(jpeg, 16, point);
            let near = found.iter().zip(expected).all(|(f, e)| (f - e as f32).abs() <= 4.0);
            assert!(near, "{name} at {point:?}: {found:?}, not {expected:?}");
        }
    }
}

#[test]
fn the_orientation_in_the_exif_data_is_not_applied() {
    // One entry: orientation (0x0112), a short, 6: to be turned by a quarter.
    let exif = b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let turned = [&BASELINE[..2], exif, &BASELINE[2..]].concat();
    assert_eq!(decode(&turned, None, 16).unwrap(), decode(BASELINE, None, 16).unwrap());
}

#[test]
fn alpha_is_dropped_and_depth_and_palette_do_not_change_the_colour() {
    let colour = [200u8, 100, 30];
    let [r, g, b] = colour.map(|v| u16::from(v) * 257 + 5);
    let cases: [(DynamicImage, [u8; 3]); 5] = [
        (ImageBuffer::from_pixel(8, 8, Rgba([200u8, 100, 30, 0])).into(), colour),
        (ImageBuffer::from_pixel(8, 8, LumaA([77u8, 3])).into(), [77; 3]),
        (ImageBuffer::from_pixel(8, 8, Rgb([r, g, b])).into(), colour),
        (ImageBuffer::from_pixel(8, 8, Rgba([r, g, b, 7])).into(), colour),
        (ImageBuffer::from_pixel(8, 8, Luma([g])).into(), [100; 3]),
    ];
    for (image, expected) in cases {
        assert_near(&levels(&png(&image), 8, (3, 3)), &expected.map(f32::from), 1e-3);
    }
    assert_near(&levels(PALETTE, 4, (1, 2)), &colour.map(f32::from), 1e-3);
    assert_near(&levels(PALETTE, 4, (3, 0)), &[255.0; 3], 1e-3);
}

#[test]
fn other_files_are_named_for_what_they_are() {
    let gif = file(&pattern(8, 8), ImageFormat::Gif);
    let cases: [(&[u8], &str); 9] = [
        (b"", "an empty file"),
        (&gif, "a GIF image"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "a WebP image"),
        (b"BM\x10\0\0\0", "a BMP image"),
        ("<html>für</html>\n".as_bytes(), "a text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer (git lfs pull was not run)"),
        (b"\0\0\0\0", "a file of zeros"),
        (b"\xff", "a file of unknown kind (it starts with ff)"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08\x09", "a file of unknown kind (it starts with 01 02 03 04 05 06 07 08)"),
    ];
    for (bytes, found) in cases {
        assert_eq!(error(bytes), format!("is {found}, not a JPEG or PNG image"));
    }
}

#[test]
fn a_file_that_ends_too_early_is_refused_wherever_it_ends() {
    let images = [("JPEG", file(&pattern(64, 48), ImageFormat::Jpeg)), ("PNG", png(&pattern(40, 40)))];
    for (format, whole) in JPEGS.map(|jpeg| ("JPEG", jpeg.to_vec())).into_iter().chain(images) {
        assert!(decode(&whole, None, 16).is_ok());
        for end in 0..whole.len() {
            let error = error(&whole[..end]);
            assert!(end < 8 || error.starts_with(&format!("cannot decode the {format} data: ")), "{error}");
        }
        let truncated = format!("cannot decode the {format} data: the file ends before the image (truncated)");
        assert_eq!(error(&whole[..whole.len() - 5]), truncated);
    }
}

#[test]
fn a_header_that_states_too_many_pixels_or_none_is_refused_before_decoding() {
    let too_large = "is an image of 30000 x 30000 pixels, more than the 100 megapixels allowed";
    let png_of_size = |size: [u8; 8]| {
        let mut bytes = png(&pattern(8, 8));
        bytes[16..24].copy_from_slice(&size);
        bytes
    };
    assert_eq!(error(&png_of_size([0, 0, 0x75, 0x30, 0, 0, 0x75, 0x30])), too_large);
    assert!(matches!(decode(&png_of_size([0xff; 8]), None, 32), Err(CodecError::TooLarge { .. })));
    assert_eq!(error(&png_of_size([0, 0, 0, 0, 0, 0, 0, 9])), "cannot decode the PNG data: its size is 0 x 9 pixels");
    let mut bytes = BASELINE.to_vec();
    let size = bytes.windows(2).position(|m| m == b"\xff\xc0").unwrap() + 5;
    bytes[size..size + 4].copy_from_slice(&[0x75, 0x30, 0x75, 0x30]);
    assert_eq!(error(&bytes), too_large);
    bytes[size..size + 4].fill(0);
    assert!(error(&bytes).starts_with("cannot decode the JPEG data: "));
}

/// `CODEC_MUTATIONS=1000000` makes it a search.
#[test]
fn damaged_files_are_errors_and_never_panics() {
    let mut sources = JPEGS.map(<[u8]>::to_vec).to_vec();
    sources.push(file(&pattern(40, 24), ImageFormat::Jpeg));
    sources.extend([pattern(12, 9), pattern(9, 12).to_luma16().into()].iter().map(png));
    let mutations: u64 = std::env::var("CODEC_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    let mut outcomes = BTreeMap::new();
    for seed in 0..mutations {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bytes = sources[seed as usize % sources.len()].clone();
        for _ in 0..rng.random_range(1..6) {
            mutate(&mut bytes, &mut rng);
        }
        let outcome = match decode(&bytes, Some(rectangle(1.0, 1.0, 5.0, 5.0)), 8) {
            Ok(decoded) => {
                assert!(decoded.pixels.iter().all(|v| v.abs() <= 1.001), "seed {seed}");
                "decoded".to_owned()
            }
            Err(error) => {
                let text = error.to_string();
                assert!(!text.contains("panicked"), "seed {seed}: {text}");
                text.chars().take(24).collect()
            }
        };
        *outcomes.entry(outcome).or_insert(0) += 1;
    }
    println!("{outcomes:#?}");
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    let at = rng.random_range(0..bytes.len());
    match rng.random_range(0..6) {
        0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 => bytes[at] = rng.random(),
        2 => bytes[at] = [0, 0xff][rng.random_range(0..2)],
        3 => bytes.truncate(at.max(1)),
        4 if at > 0 => _ = bytes.drain(at..(at + 8).min(bytes.len())),
        _ => bytes.insert(at, rng.random()),
    }
}
