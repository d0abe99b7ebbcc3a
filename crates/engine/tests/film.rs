//! Films and sheets, read back: GIF and WebP by the image library, MP4 by OpenH264's decoder.

use std::io::Cursor;
use std::path::Path;
use std::time::Duration;

use engine::film::{self, FilmError, Format, Frame};
use image::codecs::gif::GifDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, Rgb, RgbImage, imageops};
use openh264::decoder::Decoder;
use openh264::formats::YUVSource;
use shiguredo_mp4::bitstream::h264::{LengthSize, length_prefixed_to_annexb};
use shiguredo_mp4::boxes::SampleEntry;
use shiguredo_mp4::demux::{Input, Mp4FileDemuxer};

/// Frames of 32 x 32 without a repeated pixel: more colours than a GIF has.
fn frames(count: u32) -> Vec<Frame> {
    (0..count).map(|i| Frame::from_fn(32, 32, |x, y| Rgb([(8 * x) as u8, (8 * y) as u8, (20 * i + (x ^ y)) as u8]))).collect()
}

/// With few colours, as a GIF has them.
fn poster(count: u32) -> Vec<Frame> {
    (0..count).map(|i| Frame::from_fn(32, 20, |x, y| Rgb([(x / 8 * 80) as u8, (y / 5 * 80) as u8, (20 * i) as u8]))).collect()
}

/// Frames as they were before they were enlarged, and how long each is shown.
fn read(format: Format, film: &[u8], enlarged: u32) -> Vec<(Frame, Duration)> {
    let frames = match format {
        Format::Gif => GifDecoder::new(Cursor::new(film)).expect("a GIF").into_frames(),
        Format::WebP => WebPDecoder::new(Cursor::new(film)).expect("a WebP").into_frames(),
        Format::Mp4 => unreachable!("read_mp4 does"),
    };
    let shrink = |frame: image::Frame| {
        let time = frame.delay().into();
        let large = image::DynamicImage::ImageRgba8(frame.into_buffer()).into_rgb8();
        let pixel = |x, y| *large.get_pixel(enlarged * x, enlarged * y);
        let small = RgbImage::from_fn(large.width() / enlarged, large.height() / enlarged, pixel);
        assert!(large.enumerate_pixels().all(|(x, y, p)| p == small.get_pixel(x / enlarged, y / enlarged)), "blocks");
        (small, time)
    };
    frames.collect_frames().expect("whole frames").into_iter().map(shrink).collect()
}

fn assert_exact(format: Format, given: Vec<Frame>) {
    let film = film::encode(format, &given, 70).expect("a film");
    let expected: Vec<_> = given.into_iter().map(|f| (f, Duration::from_millis(70))).collect();
    assert!(read(format, &film, 8) == expected);
}

#[test]
fn a_webp_film_has_the_very_frames_and_times() {
    for given in [frames(7), poster(3), frames(1)] {
        assert_exact(Format::WebP, given);
    }
}

#[test]
fn a_gif_of_few_colours_has_the_very_frames_and_times() {
    assert_exact(Format::Gif, poster(5));
}

/// Frames that are as long on screen, and on average less than `limit` of 255 away.
fn assert_near(shown: &[(Frame, Duration)], given: &[Frame], millis: u64, limit: f64) {
    assert_eq!(shown.len(), given.len());
    for (index, ((shown, time), given)) in shown.iter().zip(given).enumerate() {
        let mean = mean_difference(shown, given);
        assert!(mean < limit, "frame {index} is {mean} of 255 away");
        assert_eq!(*time, Duration::from_millis(millis));
    }
}

#[test]
fn a_gif_of_many_colours_is_near_in_every_frame() {
    let given = frames(6);
    let film = film::encode(Format::Gif, &given, 100).expect("a film");
    assert_near(&read(Format::Gif, &film, 8), &given, 100, 8.0);
}

/// Frames of an MP4, as they are in the file, and how long each is shown.
fn read_mp4(film: &[u8]) -> Vec<(Frame, Duration)> {
    let mut demuxer = Mp4FileDemuxer::new();
    while demuxer.required_input().is_some() {
        demuxer.handle_input(Input { position: 0, data: film });
    }
    let mut decoder = Decoder::new().expect("a decoder");
    let mut frames = vec![];
    while let Some(sample) = demuxer.next_sample().expect("a sample") {
        let mut stream = vec![];
        if let Some(SampleEntry::Avc1(entry)) = sample.sample_entry {
            for set in entry.avcc_box.sps_list.iter().chain(&entry.avcc_box.pps_list) {
                stream.extend([&[0, 0, 0, 1], &set[..]].concat());
            }
        }
        let data = &film[sample.data_offset as usize..][..sample.data_size];
        stream.extend(length_prefixed_to_annexb(data, LengthSize::FourBytes).expect("units"));
        let picture = decoder.decode(&stream).expect("H.264").expect("a picture for each sample");
        let (width, height) = picture.dimensions();
        let mut frame = Frame::new(width as u32, height as u32);
        picture.write_rgb8(&mut frame);
        assert_eq!(sample.track.timescale.get(), 1000);
        frames.push((frame, Duration::from_millis(sample.duration.into())));
    }
    frames
}

fn mean_difference(a: &Frame, b: &Frame) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let apart: u32 = a.iter().zip(b.iter()).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
    f64::from(apart) / a.len() as f64
}

#[test]
fn an_mp4_is_near_in_every_frame_and_keeps_the_times() {
    for given in [frames(6), poster(3), frames(1)] {
        let film = film::encode(Format::Mp4, &given, 70).expect("a film");
        let enlarge = |f: &Frame| imageops::resize(f, 8 * f.width(), 8 * f.height(), imageops::FilterType::Nearest);
        assert_near(&read_mp4(&film), &given.iter().map(enlarge).collect::<Vec<_>>(), 70, 4.0);
    }
}

#[test]
fn an_mp4_of_odd_size_is_a_pixel_larger() {
    let given = [Frame::from_fn(301, 17, |x, _| Rgb([(x / 2) as u8, 90, 200]))];
    let film = film::encode(Format::Mp4, &given, 40).expect("a film");
    let shown = &read_mp4(&film)[0].0;
    assert_eq!(shown.dimensions(), (302, 18));
    let part = imageops::crop_imm(shown, 0, 0, 301, 17).to_image();
    assert!(mean_difference(&part, &given[0]) < 4.0);
}

#[test]
fn a_large_frame_keeps_its_size() {
    let given = [Frame::from_fn(300, 7, |x, y| Rgb([x as u8, y as u8, (x / 256) as u8]))];
    let film = film::encode(Format::WebP, &given, 40).expect("a film");
    assert!(read(Format::WebP, &film, 1)[0].0 == given[0]);
}

#[test]
fn films_are_written_by_extension() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, format) in [("a.gif", Format::Gif), ("b.WebP", Format::WebP), ("c.GIF", Format::Gif), ("d.mp4", Format::Mp4)] {
        let path = folder.path().join(name);
        film::write(&path, &poster(2), 50).expect("a film");
        let film = std::fs::read(&path).expect("the file");
        assert!(film == film::encode(format, &poster(2), 50).expect("the same"), "{name}");
    }
}

#[test]
fn a_gif_and_a_webp_repeat_for_ever() {
    let has = |format, bytes: &[u8]| {
        let film = film::encode(format, &poster(2), 50).expect("a film");
        film.windows(bytes.len()).any(|part| part == bytes)
    };
    assert!(has(Format::Gif, b"NETSCAPE2.0\x03\x01\0\0\0"));
    assert!(has(Format::WebP, b"ANIM\x06\0\0\0\0\0\0\0\0\0"));
}

#[test]
fn what_is_no_film_is_refused_and_leaves_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let message = |name: &str, frames: &[Frame]| {
        let path = folder.path().join(name);
        let error = film::write(&path, frames, 50).expect_err("it must be refused");
        assert!(!path.exists());
        error.to_string().replace(&folder.path().display().to_string(), "F")
    };
    let unknown = |name: &str| format!("cannot write a film to F/{name}: its name must end in .gif, .webp or .mp4");
    for name in ["film.avi", "film", "gif"] {
        assert_eq!(message(name, &poster(1)), unknown(name));
    }
    assert_eq!(message("a.gif", &[]), "cannot write a film without pictures");
    assert_eq!(message("a.webp", &[Frame::new(0, 5)]), "cannot write a film without pictures");
    let mixed = [poster(1), frames(1)].concat();
    assert_eq!(message("a.gif", &mixed), "frame 1 is 32 x 32 pixels, the first one 32 x 20");
    let wide = [Frame::new(70_000, 1)];
    for name in ["a.gif", "a.webp", "a.mp4"] {
        assert_eq!(message(name, &wide), "cannot encode frames of 70000 x 1 pixels");
    }
    let nowhere = film::write(Path::new("/nowhere/at/all.gif"), &poster(1), 50);
    assert!(matches!(nowhere, Err(FilmError::Write { .. })));
}

#[test]
fn pixels_become_frames_channel_by_channel() {
    let pixels = [-1.0, 0.0, 1.0, 2.0, 0.5, 0.5, 0.5, 0.5, -0.5, -1.5, f32::NAN, 1.0];
    let frame = film::frame(&pixels, 2);
    assert_eq!(frame.into_raw(), [0, 191, 64, 128, 191, 0, 255, 191, 0, 255, 191, 255]);
}

/// Whether the sheet shows this picture, without anything between its pixels, at (x, y).
fn shows(sheet: &RgbImage, frame: &Frame, enlarged: u32, (x, y): (u32, u32)) -> bool {
    let (width, height) = (enlarged * frame.width(), enlarged * frame.height());
    let part = imageops::crop_imm(sheet, x, y, width, height).to_image();
    part.dimensions() == (width, height)
        && part.enumerate_pixels().all(|(x, y, p)| p == frame.get_pixel(x / enlarged, y / enlarged))
}

#[test]
fn a_sheet_shows_every_frame_in_its_place() {
    let (one, other) = (frames(4), frames(2));
    let sheet = film::contact_sheet(&["-2", "-1", "0", "1"], &[("shirt", one.clone()), ("ankle boot", other.clone())]);
    // Ten letters of 8 pixels at the left, one line of 16 at the top, cells of 128, 4 between all.
    let (left, top, step) = (4 + 80 + 4, 4 + 16 + 4, 128 + 4);
    assert_eq!(sheet.dimensions(), (left + 4 * step, top + 2 * step));
    for (row, frames) in [one, other].iter().enumerate() {
        for (column, frame) in frames.iter().enumerate() {
            let place = (left + column as u32 * step, top + row as u32 * step);
            assert!(shows(&sheet, frame, 4, place), "row {row}, column {column}");
        }
    }
}

/// Pixels of a part that are not paper.
fn ink(sheet: &RgbImage, (x, y): (u32, u32), (width, height): (u32, u32)) -> usize {
    imageops::crop_imm(sheet, x, y, width, height).to_image().pixels().filter(|p| p.0 != [255; 3]).count()
}

#[test]
fn labels_are_beside_their_rows_and_over_their_columns_and_stay_there() {
    let white = || vec![Frame::from_pixel(32, 32, Rgb([255; 3])); 2];
    let sheet = film::contact_sheet(&["", "a label that is far too long"], &[("né, 好", white()), ("", white())]);
    let (left, top) = (4 + 5 * 8 + 4, 4 + 16 + 4);
    assert!(ink(&sheet, (4, top), (40, 128)) > 40, "the first row's label");
    assert_eq!(ink(&sheet, (0, top + 132), (left, 132)), 0, "the second row has none");
    assert_eq!(ink(&sheet, (left, 0), (132, top)), 0, "nor has the first column");
    assert!(ink(&sheet, (left + 132, 0), (128, top)) > 100, "the second column's label");
    assert_eq!(ink(&sheet, (left, top), (264, 264)), 0, "no label is on a frame");
    assert_eq!(film::contact_sheet(&[], &[("", white())]).dimensions(), (4 + 2 * 132, 4 + 132));
    assert!(film::contact_sheet(&[], &[]).dimensions() >= (1, 1));
}
