"""The networks: backbones, image towers, observation encoders, augmentation."""
