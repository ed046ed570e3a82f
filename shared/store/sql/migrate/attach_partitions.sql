SELECT attach_partitions(:parent, :ahead)
