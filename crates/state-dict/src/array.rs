//! Arrays, and how a view of a storage becomes one.

/// Type of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 8 bits.
    U8,
    /// A byte, 0 or 1.
    Bool,
}

impl Dtype {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 => 2,
            Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
        }
    }
}

/// A tensor of a checkpoint: row-major, contiguous, little-endian.
#[derive(Clone, PartialEq, Eq)]
pub struct Array {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Sizes, outermost first; none for a scalar.
    pub shape: Vec<usize>,
    /// `dtype.size()` bytes for each element.
    pub data: Vec<u8>,
}

impl Array {
    /// The elements as f32, rounded if they are f64; `None` if they are not floats.
    pub fn floats(&self) -> Option<Vec<f32>> {
        Some(match self.dtype {
            Dtype::F64 => words(&self.data).map(|b| f64::from_le_bytes(b) as f32).collect(),
            Dtype::F32 => words(&self.data).map(f32::from_le_bytes).collect(),
            Dtype::F16 => words(&self.data).map(|b| from_half(u16::from_le_bytes(b))).collect(),
            Dtype::Bf16 => words(&self.data).map(|b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)).collect(),
            _ => return None,
        })
    }
}

/// Shows type and shape, not the data, which may be gigabytes.
impl std::fmt::Debug for Array {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}{:?}", self.dtype, self.shape)
    }
}

/// A tensor's place in its storage, in elements.
pub(crate) struct View {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// One for each size.
    pub strides: Vec<usize>,
    pub offset: usize,
}

impl View {
    /// A whole storage, row-major.
    pub fn whole(dtype: Dtype, shape: Vec<usize>) -> Self {
        let strides = row_major(shape.iter().rev());
        View { dtype, strides: strides.into_iter().rev().collect(), shape, offset: 0 }
    }

    /// A whole storage, column-major.
    pub fn whole_fortran(dtype: Dtype, shape: Vec<usize>) -> Self {
        View { dtype, strides: row_major(shape.iter()), shape, offset: 0 }
    }

    /// Bytes of the array; `None` if they overflow.
    pub fn bytes(&self) -> Option<usize> {
        self.shape.iter().try_fold(self.dtype.size(), |bytes, &size| bytes.checked_mul(size))
    }

    /// Its sizes and strides, without the axes along which nothing moves.
    fn axes(&self) -> Vec<(usize, usize)> {
        self.shape.iter().copied().zip(self.strides.iter().copied()).filter(|&(size, _)| size != 1).collect()
    }
}

/// Strides of the sizes, given innermost first. They saturate: then the array is empty or its bytes overflow.
fn row_major<'a>(sizes: impl Iterator<Item = &'a usize>) -> Vec<usize> {
    sizes
        .scan(1usize, |stride, &size| {
            let this = *stride;
            *stride = stride.saturating_mul(size);
            Some(this)
        })
        .collect()
}

/// The array of a view; nothing if it reaches past the end of the storage. The caller has bounded `view.bytes()`.
pub(crate) fn gather(view: &View, storage: &[u8]) -> Option<Vec<u8>> {
    let (size, bytes) = (view.dtype.size(), view.bytes()?);
    if bytes == 0 {
        return Some(Vec::new());
    }
    let axes = view.axes();
    let last = axes.iter().try_fold(view.offset, |last, &(n, stride)| last.checked_add((n - 1).checked_mul(stride)?))?;
    let end = last.checked_add(1)?.checked_mul(size)?;
    let start = view.offset.checked_mul(size)?;
    let whole = storage.get(start..end)?;
    if axes.iter().rev().try_fold(1, |expected, &(n, stride)| (stride == expected).then_some(n * stride)).is_some() {
        return Some(whole.to_vec());
    }
    let mut data = Vec::with_capacity(bytes);
    let mut index = vec![0; axes.len()];
    let mut at = 0;
    while data.len() < bytes {
        data.extend_from_slice(&whole[at * size..][..size]);
        for (i, &(n, stride)) in index.iter_mut().zip(&axes).rev() {
            *i += 1;
            at += stride;
            if *i < n {
                break;
            }
            at -= n * stride;
            *i = 0;
        }
    }
    Some(data)
}

/// Whether no element is NaN or infinite.
pub(crate) fn is_finite(dtype: Dtype, data: &[u8]) -> bool {
    match dtype {
        Dtype::F64 => words(data).all(|b| f64::from_le_bytes(b).is_finite()),
        Dtype::F32 => words(data).all(|b| f32::from_le_bytes(b).is_finite()),
        Dtype::F16 => words(data).all(|b| u16::from_le_bytes(b) & 0x7c00 != 0x7c00),
        Dtype::Bf16 => words(data).all(|b| u16::from_le_bytes(b) & 0x7f80 != 0x7f80),
        _ => true,
    }
}

fn words<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> {
    data.as_chunks::<N>().0.iter().copied()
}

/// IEEE binary16 to binary32, exactly.
fn from_half(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let (exponent, fraction) = (u32::from(bits >> 10 & 0x1f), u32::from(bits & 0x3ff));
    let magnitude = match exponent {
        // Subnormal: the fraction counts steps of 2^-24.
        0 => (fraction as f32 * 2f32.powi(-24)).to_bits(),
        31 => 0x7f80_0000 | fraction << 13,
        _ => (exponent + 127 - 15) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}
