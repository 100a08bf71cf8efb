"""How many bits a tokenizer may spend on an image (masked-bit paper, section 3.2)."""


def discrete(grid: tuple[int, int], codebook_size: int) -> int:
    """Eq. 3: a code of `codebook_size` (of any size, 2^256 too) for each token of the grid."""
    return grid[0] * grid[1] * (codebook_size - 1).bit_length()  # exactly ceil(log2 C)


def continuous(grid: tuple[int, int], channels: int) -> int:
    """Eq. 4: `channels` numbers of 16 bits for each token of the grid."""
    return grid[0] * grid[1] * 16 * channels


def of_named_tokenizers(image_size: int) -> dict[str, int]:
    """Bit budgets of the other tokenizers that the paper names, at an image size in pixels.

    Figure 3 compares LlamaGen-VQ and MAR-VAE, section 3.3 names SD-VAE. Its text gives none of
    their sizes; those here are of the works it cites: LlamaGen 2^14 codes (Sun et al. 2024), MAR's
    VAE 16 channels (Li et al. 2024), both of patches of 16 px; SD-VAE 4 channels of 8 px (Rombach
    et al. 2022).
    """
    grid = lambda patch_size: (image_size // patch_size,) * 2
    return {
        "LlamaGen-VQ": discrete(grid(16), 2**14),
        "MAR-VAE": continuous(grid(16), 16),
        "SD-VAE": continuous(grid(8), 4),
    }
