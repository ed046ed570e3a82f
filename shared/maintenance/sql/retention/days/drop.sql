SELECT drop_partitions(:day, :default_days)
