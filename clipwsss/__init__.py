"""clipwsss: weakly supervised semantic segmentation guided by CLIP."""
