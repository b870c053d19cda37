//! What the tests need next to Rust: a Vulkan driver, any that is there, else lavapipe from the distribution,
//! and a C++ compiler for the emitted Metal source.

use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

/// Whether the emitted Metal source can be executed here, as msl-host's `execute` can.
pub(crate) const EXECUTES_METAL: bool = cfg!(all(
    any(target_os = "linux", target_os = "macos"),
    any(target_arch = "x86_64", target_arch = "aarch64")
));

/// What is said where it cannot.
pub(crate) const NO_METAL: &str =
    "the emitted Metal source is executed on Linux and macOS only, on x86-64 and arm64";

/// Folders in which the Vulkan loader looks for drivers.
const DRIVER_FOLDERS: [&str; 3] =
    ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d"];

/// Makes sure that the tests find an adapter, or says what to install.
pub(crate) fn ensure() -> Result<()> {
    // macOS and Windows bring their own; a driver named by hand is the user's business.
    let named = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].iter().any(|name| std::env::var_os(name).is_some());
    if !cfg!(target_os = "linux") || named || has_driver() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "no Vulkan driver was found: install your distribution's, or Mesa's software driver lavapipe (Fedora: \
             `dnf install mesa-vulkan-drivers`, Arch: `pacman -S vulkan-swrast`)"
        );
    }
    println!("no Vulkan driver was found: installing Mesa's software driver (lavapipe) ...");
    install(&["mesa-vulkan-drivers", "libvulkan1"])
}

/// Makes sure that there is a clang++, or says what to install.
pub(crate) fn ensure_compiler() -> Result<()> {
    let named = std::env::var_os("CXX").is_some();
    if named || Command::new("clang++").arg("--version").output().is_ok_and(|output| output.status.success())
    {
        return Ok(());
    }
    if !cfg!(target_os = "linux") || !Path::new("/usr/bin/apt-get").exists() {
        bail!("no clang++ was found: install clang (macOS: `xcode-select --install`)");
    }
    println!("no clang++ was found: installing clang ...");
    install(&["clang"])
}

fn install(packages: &[&str]) -> Result<()> {
    for arguments in [&["update"][..], &[&["install", "-y"][..], packages].concat()] {
        if !apt(arguments)? {
            bail!("apt-get {} failed: install {} by hand", arguments.join(" "), packages.join(" and "));
        }
    }
    Ok(())
}

fn has_driver() -> bool {
    let has_manifest = |folder: &&str| {
        std::fs::read_dir(folder).is_ok_and(|entries| {
            entries
                .flatten()
                .any(|entry| entry.path().extension().is_some_and(|extension| extension == "json"))
        })
    };
    let loader = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"]
        .iter()
        .any(|folder| Path::new(folder).join("libvulkan.so.1").exists());
    loader && DRIVER_FOLDERS.iter().any(has_manifest)
}

/// apt-get, through sudo for ordinary users.
fn apt(arguments: &[&str]) -> Result<bool> {
    let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.starts_with(b"0"));
    let mut command = if root {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("apt-get");
        sudo
    };
    Ok(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status()?.success())
}
