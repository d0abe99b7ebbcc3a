//! Fashion-MNIST in the IDX format (gzip), as Debian's package `dataset-fashion-mnist` installs it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use tch::{Kind, Tensor};

/// The ten classes, in label order.
pub const CLASSES: [&str; 10] =
    ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];

/// The super-class of each class.
pub const SUPER_CLASSES: [&str; 10] =
    ["Tops", "Bottoms", "Tops", "One-piece", "Outerwear", "Footwear", "Tops", "Footwear", "Accessories", "Footwear"];

/// Width and height in pixels after padding.
pub const SIZE: i64 = 32;

const SOURCE_SIZE: i64 = 28;

/// Images and labels of one half of the data set.
pub struct Split {
    /// `[n, 1, 32, 32]`, uint8, zero-padded by two pixels on each side.
    pub images: Tensor,
    /// `[n]`, int64, in `0..10`.
    pub labels: Tensor,
}

impl Split {
    pub fn train(dir: &Path) -> Result<Split> {
        Split::open(dir, "train")
    }

    pub fn test(dir: &Path) -> Result<Split> {
        Split::open(dir, "t10k")
    }

    fn open(dir: &Path, prefix: &str) -> Result<Split> {
        let (dims, pixels) = read_idx(&dir.join(format!("{prefix}-images-idx3-ubyte.gz")))?;
        ensure!(dims.len() == 3 && dims[1..] == [SOURCE_SIZE, SOURCE_SIZE], "images are {dims:?}, not [n, 28, 28]");
        let (label_dims, labels) = read_idx(&dir.join(format!("{prefix}-labels-idx1-ubyte.gz")))?;
        ensure!(label_dims == dims[..1], "{} images but {label_dims:?} labels", dims[0]);
        ensure!(labels.iter().all(|&l| l < 10), "a label is 10 or more");
        let pad = (SIZE - SOURCE_SIZE) / 2;
        let images =
            Tensor::from_slice(&pixels).view([dims[0], 1, SOURCE_SIZE, SOURCE_SIZE]).constant_pad_nd([pad, pad, pad, pad]);
        Ok(Split { images, labels: Tensor::from_slice(&labels).to_kind(Kind::Int64) })
    }

    pub fn len(&self) -> i64 {
        self.labels.size()[0]
    }

    /// Images as the networks see them: `[k, 3, 32, 32]`, float in [-1, 1], the grey value in all three channels.
    pub fn batch(&self, index: &Tensor) -> (Tensor, Tensor) {
        let images = self.images.index_select(0, index).to_kind(Kind::Float) / 127.5 - 1.0;
        (images.expand([-1, 3, -1, -1], false), self.labels.index_select(0, index))
    }

    /// Indices of the images of each class.
    pub fn by_class(&self) -> Vec<Vec<i64>> {
        let labels: Vec<i64> = Vec::try_from(&self.labels).expect("labels are one-dimensional int64");
        let mut index = vec![Vec::new(); CLASSES.len()];
        for (i, label) in labels.into_iter().enumerate() {
            index[label as usize].push(i as i64);
        }
        index
    }
}

fn read_idx(path: &Path) -> Result<(Vec<i64>, Vec<u8>)> {
    let file =
        File::open(path).with_context(|| format!("cannot open {} (apt-get install dataset-fashion-mnist)", path.display()))?;
    let mut bytes = Vec::new();
    GzDecoder::new(file).read_to_end(&mut bytes).with_context(|| format!("cannot decompress {}", path.display()))?;
    ensure!(bytes.len() >= 4 && bytes[..3] == [0, 0, 8], "{} is not an IDX file of bytes", path.display());
    let rank = bytes[3] as usize;
    let header = 4 + 4 * rank;
    ensure!(bytes.len() >= header, "{} ends in its header", path.display());
    let dims: Vec<i64> =
        bytes[4..header].chunks(4).map(|c| i64::from(u32::from_be_bytes(c.try_into().expect("chunks of four")))).collect();
    let data = bytes.split_off(header);
    ensure!(data.len() as i64 == dims.iter().product::<i64>(), "{} has {} bytes for {dims:?}", path.display(), data.len());
    Ok((dims, data))
}
