SELECT day_standing(:day, :default_days)
