"""Tables, patches, packed patches, fold files, augmentation and batches.

Other packages use:

- `arrays`: `Columns`, `Labels`, `Pixels`, `Probabilities`, `THRESHOLD`
- `augment`: `STATISTICS`, `change_stain`, `crop_centre`, `to_input`
- `batches`: `Batch`, `EpochBatches`, `ExtraPatches`, `PredictionBlocks`, `TrainSet`
- `d4`: `apply_symmetry`, `view`, `undo_view`
- `fold_file`: `CLASS_NAMES`, `FOLD_NAMES`, `Folds`, `LABEL_NAMES`, `SPLIT_AGAIN_HINT`, `SPLIT_BY_PATCH`, `check_folds`,
  `count_folds`, `parse_fold_numbers`, `read_folds`, `require_together`, `write_folds`
- `fold_split`: `make_folds`
- `image_kinds`: `name_image_kind`
- `foreign_tables`: `ForeignTable`, `clean_ids`, `has_header`, `list_columns`, `log_table_form`, `open_table`
- `integrity`: `Findings`, `check_data`
- `pack`: `Pack`, `ensure_pack`, `open_pack`, `pack_folder`, `read_verified_patch`
- `patches`: `CENTRE`, `PATCH_BYTES`, `PATCH_SHAPE`, `SIZE`, `patch_id`, `read_patch`
- `prepare`: `TrainingData`, `check_fold_file`, `get_pack`, `make_fold_file`, `make_packs`,
  `read_training`, `read_training_folds`
- `pseudo_file`: `PSEUDO_COLUMNS`, `PseudoLabels`, `read_pseudo_file`, `require_test_ids`, `sort_pseudo_labels`,
  `write_pseudo_file`
- `synthetic`: `draw_example`, `generate`
- `tables`: `LOGIT_HINT`, `digest_rows`, `match_slides`, `number_texts`, `parse_labels`, `parse_probabilities`,
  `read_labels`, `read_sample`, `read_slides`, `read_table`, `require_equal_ids`, `require_ids`, `require_unique`,
  `sort_order`, `write_table`
"""
