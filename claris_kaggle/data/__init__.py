"""Tables, patches, packs, fold files, augmentation and batches."""
